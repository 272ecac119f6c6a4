"""Fills a folder with what the tasks are about: `python data.py FOLDER`. The same every time. Standard library only."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

AUTHORS = ("Ada", "Grace", "Ada", "Edsger")
PRODUCTS = (
    ("lamp", 25, 12), ("chair", 60, 4), ("table", 180, 2), ("mug", 8, 90), ("kettle", 40, 7), ("rug", 95, 3),
    ("shelf", 70, 5), ("clock", 33, 10), ("vase", 21, 14), ("stool", 45, 6),
)  # fmt: skip
ORDERS = ("lamp", "mug", "mug", "chair", "lamp", "kettle", "mug", "rug", "lamp", "clock", "table", "mug", "lamp")
NOTES = {
    "monday.txt": "INFO start\nERROR disk full\nINFO stop\n",
    "tuesday.txt": "INFO start\nERROR no route\nERROR no route\nWARN slow\nINFO stop\n",
    "wednesday.txt": "INFO start\nINFO stop\n",
    "thursday.txt": "INFO start\nWARN slow\nERROR disk full\nINFO stop\n",
    "friday.txt": "INFO start\nINFO the needle is here\nERROR timeout\nINFO more\nINFO more\nINFO more\nINFO stop\n",
}


def repository(folder: Path) -> None:
    folder.mkdir(parents=True)
    subprocess.run(["git", "-C", folder, "init", "-q"], check=True)
    for number in range(1, 11):
        names = ["a.txt", "b.txt"] if number % 2 == 0 else ["a.txt"]
        for name in names:
            with open(folder / name, "a", encoding="utf-8") as file:
                file.write(f"line {number}\n" + ("a teapot\n" if number == 7 and name == "a.txt" else ""))
        who, moment = AUTHORS[number % 4], f"2026-0{min(number, 9)}-01T10:00:00+00:00"
        identity = {
            f"GIT_{kind}_{part}": value
            for kind in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", who), ("EMAIL", f"{who.lower()}@example.com"), ("DATE", moment))
        }
        subprocess.run(["git", "-C", folder, "add", "."], check=True)
        subprocess.run(
            ["git", "-C", folder, "commit", "-q", "-m", f"Change number {number}"], check=True,
            env={**os.environ, **identity},
        )  # fmt: skip


def shop(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table products (name text, price integer, stock integer)")
        database.executemany("insert into products values (?, ?, ?)", PRODUCTS)
        database.execute("create table orders (id integer primary key, product text)")
        database.executemany("insert into orders (product) values (?)", [(name,) for name in ORDERS])


def main(folder: Path) -> None:
    repository(folder / "repo")
    shop(folder / "shop.db")
    (folder / "notes").mkdir()
    for name, text in NOTES.items():
        (folder / "notes" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
