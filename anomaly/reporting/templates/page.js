"use strict";
// Layers of films: a choice and a slider a card, and one for all cards. Without this script the first layer shows.
document.documentElement.classList.add("scripted");
const cards = [...document.querySelectorAll(".film")].filter((card) => card.querySelector(".controls"));

function show(card) {
  const layer = card.querySelector("input[type=radio]:checked").value;
  const slider = card.querySelector("input[type=range]");
  const stage = card.querySelector(".stage");
  stage.style.setProperty("--share", slider.value / 100);
  for (const picture of stage.querySelectorAll("[data-layer]")) {
    picture.classList.toggle("shown", picture.dataset.layer === layer);
  }
  slider.setAttribute("aria-valuetext", `${slider.value} % ${layer}`);
  card.querySelector("output").textContent = `${slider.value} %`;
}

for (const card of cards) {
  card.addEventListener("input", () => show(card));
  show(card); // a browser that comes back to the page may remember where the controls stood
}

for (const every of document.querySelectorAll(".every")) {
  const slider = every.querySelector("input[type=range]");
  every.addEventListener("input", (event) => {
    const chosen = event.target;
    for (const card of cards) {
      if (chosen === slider) card.querySelector("input[type=range]").value = slider.value;
      else {
        const same = [...card.querySelectorAll("input[type=radio]")].find((own) => own.value === chosen.value);
        if (same) same.checked = true;
      }
      show(card);
    }
    every.querySelector("output").textContent = `${slider.value} %`;
  });
  every.querySelector("output").textContent = `${slider.value} %`;
}
