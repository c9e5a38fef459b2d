"""Kill every verb, and fail its disk, at chosen system calls: nothing may be lost, and the same command must end alike.

shim.c        the library that counts the calls by which a process tree changes a folder, and acts at one of them
shim.py       compiling and arming it
trials.py     one command as a process: forked from one that has imported everything, so that it starts at once
scenarios.py  what each verb starts from, and the command that is disturbed
compare.py    what of the files may differ between two undisturbed runs, and nothing else
campaign.py   the trials of a scenario, and what they came to
"""
