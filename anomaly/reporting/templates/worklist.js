"use strict";
// Going through the list by keyboard, the large view, marks and notes kept in the browser, and their way out as CSV.
document.documentElement.classList.add("scripted");
const find = (id) => document.getElementById(id);
const list = find("films"), view = find("view"), filter = find("filter"), note = find("note"), mark = find("mark");
const rows = [...list.querySelectorAll("li")];
const key = `anomaly-worklist:${list.dataset.list}`;
const nameOf = (row) => row.querySelector(".name").textContent;
const textOf = (row, part) => row.querySelector(part)?.textContent ?? "";
const idOf = (row) => row.dataset.id ?? nameOf(row); // films may share a name, as one that was sent twice
const kept = new Map(); // id of a film -> its mark and note; a film may be called __proto__
let current = rows[0], viewed = rows[0], layer = "heatmap";

function load() {
  try {
    for (const [id, { marked, note: text }] of Object.entries(JSON.parse(localStorage.getItem(key)) ?? {})) {
      kept.set(id, { marked: Boolean(marked), note: String(text) });
    }
  } catch {
    find("storage").hidden = false; // a browser may refuse, and what another page left there need not be ours
  }
}

function save() {
  try {
    localStorage.setItem(key, JSON.stringify(Object.fromEntries(kept)));
  } catch {
    find("storage").hidden = false;
  }
}

const entry = (row) => kept.get(idOf(row)) ?? { marked: false, note: "" };

function keep(row, change) {
  const changed = { ...entry(row), ...change };
  if (changed.marked || changed.note) kept.set(idOf(row), changed);
  else kept.delete(idOf(row));
  save();
  decorate(row);
  find("export").disabled = kept.size === 0;
}

function decorate(row) {
  const { marked, note: text } = entry(row);
  row.classList.toggle("marked", Boolean(marked));
  let noted = row.querySelector(".noted");
  if (!text && !marked) {
    noted?.remove();
    return;
  }
  if (!noted) {
    noted = document.createElement("span");
    noted.className = "noted";
    row.firstElementChild.append(noted);
  }
  noted.textContent = [marked ? "marked" : "", text].filter(Boolean).join(": ");
}

function shown(start, step) {
  let place = rows.indexOf(start) + step;
  while (place >= 0 && place < rows.length && rows[place].hidden) place += step;
  return rows[place];
}

function go(row) {
  if (!row) return;
  current = row;
  if (view.open) fill();
  else row.firstElementChild.focus();
  row.scrollIntoView({ block: "nearest" });
}

function fill() {
  viewed = current;
  const { marked, note: text } = entry(current);
  find("view-name").textContent = `${textOf(current, "b")}. ${nameOf(current)}`;
  const chips = [...current.querySelectorAll("em")].map((chip) => chip.textContent);
  find("view-value").textContent = [...chips, textOf(current, ".value")].join(" · ");
  find("view-whose").textContent = textOf(current, ".whose");
  note.value = text;
  mark.setAttribute("aria-pressed", String(Boolean(marked)));
  find("previous").disabled = !shown(current, -1);
  find("next").disabled = !shown(current, 1);
  draw();
  const following = shown(current, 1)?.dataset;
  for (const name of new Set(following ? [shownOf(following), "film"] : [])) {
    if (following[name]) new Image().src = following[name];
  }
}

// Which picture of a film is shown: the one wished for, else the first that there is; undefined where there is none.
const shownOf = (there) => [layer, "heatmap", "film", "reconstruction"].find((name) => there[name]);

function draw() {
  const there = current.dataset;
  const chosen = shownOf(there);
  find("layers").hidden = find("view-picture").parentElement.hidden = !chosen;
  find("view-none").hidden = Boolean(chosen);
  if (!chosen) return;
  for (const radio of find("layers").elements) {
    radio.checked = radio.value === chosen;
    radio.disabled = !there[radio.value];
  }
  find("view-picture").src = there[chosen];
  find("view-picture").alt = `${chosen} of ${nameOf(current)}`;
}

function enlarge(row) {
  current = row;
  fill();
  view.showModal();
  find("close").focus();
}

function leave() {
  view.close(); // brings the focus back to where the view was opened, which may be films ago
  viewed.firstElementChild.focus();
}

let texts = null; // of all rows, in lower case, once a filter is typed

function sift() {
  texts ??= rows.map((row) => row.textContent.toLowerCase());
  const wanted = filter.value.trim().toLowerCase();
  const flagged = find("only-flagged").checked, noted = find("only-noted").checked;
  let count = 0;
  const left = new Map([...list.children].map((group) => [group, 0]));
  for (const [place, row] of rows.entries()) {
    const fits =
      (!wanted || texts[place].includes(wanted)) &&
      (!flagged || row.classList.contains("flagged")) &&
      (!noted || kept.has(idOf(row)));
    if (row.hidden === fits) row.hidden = !fits;
    left.set(row.parentElement, left.get(row.parentElement) + fits);
    count += fits;
  }
  for (const [group, remaining] of left) {
    group.hidden = !remaining;
    group.style.setProperty("--rows", remaining); // what is out of sight is given room by their number
  }
  find("count").textContent = count === rows.length ? `${count} films` : `${count} of ${rows.length} films`;
  if (current.hidden) current = rows.find((row) => !row.hidden) ?? current;
}

// A spreadsheet takes a cell that begins with one of these for a formula, whoever wrote it: names of films come from
// elsewhere.
const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

function table() {
  const lines = [["rank", "film", "of", list.dataset.score, "flagged", "marked", "note"].map(cell).join(",")];
  for (const row of rows) {
    if (!kept.has(idOf(row))) continue;
    const { marked, note: text } = entry(row);
    const flagged = Number(row.classList.contains("flagged"));
    const numbers = [Number(row.dataset.score), flagged, Number(Boolean(marked))];
    lines.push([textOf(row, "b"), cell(nameOf(row)), cell(textOf(row, ".whose")), ...numbers, cell(text)].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

find("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", table()], { type: "text/csv" })); // the mark: spreadsheets read UTF-8
  link.download = "notes.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
list.addEventListener("click", (event) => {
  const row = event.target.closest("li");
  if (row) enlarge(row);
});
list.addEventListener("focusin", (event) => {
  current = event.target.closest("li");
});
find("layers").addEventListener("change", (event) => {
  layer = event.target.value;
  draw();
});
note.addEventListener("input", () => keep(current, { note: note.value }));
mark.addEventListener("click", () => toggleMark());
find("previous").addEventListener("click", () => go(shown(current, -1)));
find("next").addEventListener("click", () => go(shown(current, 1)));
find("close").addEventListener("click", leave);
for (const id of ["filter", "only-flagged", "only-noted"]) find(id).addEventListener("input", sift);

function toggleMark() {
  keep(current, { marked: !entry(current).marked });
  if (view.open) mark.setAttribute("aria-pressed", String(entry(current).marked));
}

function toggle(name, other) {
  layer = layer === name ? other : name;
  if (view.open) draw();
}

const keys = {
  j: () => go(atList() ? shown(current, 1) : current),
  k: () => go(atList() ? shown(current, -1) : current),
  o: () => toggle("heatmap", "film"),
  r: () => toggle("reconstruction", "film"),
  f: () => atList() && toggleMark(),
  n: () => {
    if (!atList()) return;
    if (!view.open) enlarge(current);
    note.focus();
  },
  "/": () => {
    if (view.open) view.close();
    filter.focus();
    filter.select();
  },
};
keys.ArrowDown = keys.j;
keys.ArrowUp = keys.k;

// The first key goes to the film where the list was left, or to the first one; only then do keys move on.
function atList() {
  return view.open || list.contains(document.activeElement);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.matches("textarea, input[type=search]");
  if (event.key === "Escape" && writes) {
    event.preventDefault(); // leaves the field; the next one closes the view
    if (view.open) find("close").focus();
    else go(current);
    return;
  }
  if (event.key === "Escape" && view.open) {
    event.preventDefault();
    leave();
    return;
  }
  if (writes || (event.key.startsWith("Arrow") && event.target.matches("input"))) return;
  if (event.key === "Enter" && event.target === document.body && current && !current.hidden) {
    event.preventDefault(); // where nothing has the focus yet
    enlarge(current);
    return;
  }
  const action = keys[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

load();
if (kept.size) for (const row of rows) if (kept.has(idOf(row))) decorate(row);
find("export").disabled = kept.size === 0;
