"""The twenty tasks of `toolscore bench code`: data that is made for them, the code, and how its answer is checked.

Each is for real servers: time, git, sqlite, filesystem and memory. The data are a function of a seed, so every answer
is known beforehand, from the data and never from a server.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

__all__ = ["TASKS", "Data", "Task", "make_data", "text_of"]

PEOPLE = ("Ada", "Grace", "Edsger", "Barbara")
REGIONS = ("north", "south", "east")
WORDS = ("river", "stone", "garden", "window", "copper", "lantern", "bridge", "harbour", "meadow", "teapot")


@dataclass
class Data:
    """What the tasks work on, and what is true of it.

    Attributes:
        folder: has `repo`, `files` and `shop.db`.
    """

    folder: Path
    authors: Counter[str] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)
    teapot: str = ""
    revenue: dict[str, float] = field(default_factory=dict)
    best: list[tuple[str, float]] = field(default_factory=list)
    orphans: int = 0
    errors: int = 0
    words: Counter[str] = field(default_factory=Counter)
    longest: str = ""
    sizes: int = 0
    titles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        code: what a model would write. `$repo`, `$files` stand for the folders.
        right: whether what it printed is the answer.
    """

    name: str
    text: str
    servers: tuple[str, ...]
    code: str
    right: Callable[[str, Data], bool]


def make_data(folder: Path) -> Data:
    """Make the repository, the files and the database."""
    chance = random.Random(7)
    data = Data(folder)
    _repository(folder / "repo", data, chance)
    _shop(folder / "shop.db", data, chance)
    _files(folder / "files", data, chance)
    return data


def _repository(folder: Path, data: Data, chance: random.Random) -> None:
    folder.mkdir(parents=True)
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    for number in range(24):
        who, name = chance.choice(PEOPLE), f"{chance.choice(WORDS[:6])}.txt"
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(f"{chance.choice(WORDS[:9])} {number}\n" + ("teapot\n" if number == 15 else ""))
        moment = f"2026-{number // 4 + 1:02d}-{number % 4 * 7 + 1:02d}T12:00:00+00:00"
        identity = {
            "GIT_AUTHOR_NAME": who, "GIT_COMMITTER_NAME": who, "GIT_AUTHOR_EMAIL": f"{who}@example.com",
            "GIT_COMMITTER_EMAIL": f"{who}@example.com", "GIT_AUTHOR_DATE": moment, "GIT_COMMITTER_DATE": moment,
        }  # fmt: skip
        environment = {**os.environ, **identity}
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"Change {number}"], check=True, env=environment)
        data.authors[who] += 1
        if number >= 24 - 15:
            data.touched[name] += 1
        if number == 15:
            data.teapot = f"Change {number}"


def _shop(path: Path, data: Data, chance: random.Random) -> None:
    with sqlite3.connect(path) as shop:
        shop.execute("create table customers (id integer primary key, name text, region text)")
        shop.execute("create table orders (id integer primary key, customer integer, month text, total real)")
        names = {number: f"{chance.choice(WORDS).title()} & Co. {number}" for number in range(1, 31)}
        for number, name in names.items():
            shop.execute("insert into customers values (?, ?, ?)", (number, name, chance.choice(REGIONS)))
        spent: Counter[int] = Counter()
        for number in range(1, 401):
            customer, month = chance.randint(1, 32), f"2026-{chance.randint(1, 12):02d}"
            total = chance.randint(100, 99_900) / 100
            shop.execute("insert into orders values (?, ?, ?, ?)", (number, customer, month, total))
            data.revenue[month] = round(data.revenue.get(month, 0.0) + total, 2)
            data.orphans += customer > 30
            if customer <= 30:
                spent[customer] += round(total * 100)
        data.best = [(names[customer], cents / 100) for customer, cents in spent.most_common(10)]


def _files(folder: Path, data: Data, chance: random.Random) -> None:
    (folder / "logs").mkdir(parents=True)
    (folder / "notes").mkdir()
    for number in range(10):
        levels = [chance.choice(("INFO", "INFO", "WARN", "ERROR")) for _ in range(60)]
        lines = [f"2026-11-{number + 1:02d} {level} {chance.choice(WORDS)}" for level in levels]
        (folder / "logs" / f"day{number:02d}.log").write_text("\n".join(lines) + "\n")
        data.errors += levels.count("ERROR")
    longest = 0
    for number in range(12):
        words = [chance.choice(WORDS) for _ in range(chance.randint(40, 160))]
        title = f"Note {number}: {chance.choice(WORDS)}"
        text = f"# {title}\n\n{' '.join(words)}\n"
        (folder / "notes" / f"note{number:02d}.md").write_text(text)
        data.titles.append(title)
        data.words.update(words)
        if len(words) > longest:
            longest, data.longest = len(words), f"note{number:02d}.md"
    data.sizes = sum(path.stat().st_size for path in (folder / "logs").iterdir())


def _zone_hours(zones: tuple[str, ...]) -> set[str]:
    now = datetime.now(ZoneInfo("UTC"))
    return {zone for zone in zones if 9 <= now.astimezone(ZoneInfo(zone)).hour < 17}


ZONES = ("Asia/Tokyo", "Europe/Oslo", "America/Lima", "Australia/Sydney", "Africa/Nairobi", "America/Denver")

TASKS: tuple[Task, ...] = (
    Task("who is at work", f"Which of these have working hours (9 to 17) now: {', '.join(ZONES)}?", ("time",), f"""
zones = {ZONES!r}
times = tools.parallel(tools.time.get_current_time.later(timezone=zone) for zone in zones)
print(*(zone for zone, now in zip(zones, times) if 9 <= int(now["datetime"][11:13]) < 17))
""", lambda said, data: set(said.split()) == _zone_hours(ZONES)),
    Task("one moment, many places", "09:30 in Tokyo: what time is that in six other zones?", ("time",), """
for zone in ["UTC", "Europe/Oslo", "America/Lima", "Asia/Dubai", "Asia/Kolkata", "Asia/Seoul"]:
    told = tools.time.convert_time(source_timezone="Asia/Tokyo", time="09:30", target_timezone=zone)
    print(zone, told["target"]["datetime"][11:16])
""", lambda said, data: "UTC 00:30" in said and "Asia/Kolkata 06:00" in said),
    Task("a meeting", "From 0 to 23 h UTC: how many full hours lie between 8 and 20 h in Dubai?", ("time",), """
convert = tools.time.convert_time
hours = range(24)
later = [convert.later(source_timezone="UTC", time=f"{hour:02d}:00", target_timezone="Asia/Dubai") for hour in hours]
hours = [int(told["target"]["datetime"][11:13]) for told in tools.parallel(later)]
print(sum(8 <= hour < 20 for hour in hours))
""", lambda said, data: said.strip() == "12"),
    Task("who commits", "How many of all commits has each author, as git show of each tells?", ("git",), """
import re
from collections import Counter
log = tools.git.git_log(repo_path="$repo", max_count=24)
hashes = re.findall(r"Commit: '?([0-9a-f]{40})", str(log))
shown = tools.parallel(tools.git.git_show.later(repo_path="$repo", revision=one) for one in hashes)
print(Counter(re.search(r"Author: .*?'?([A-Z][a-z]+)\\b", text).group(1) for text in shown))
""", lambda said, data: all(f"'{who}': {count}" in said for who, count in data.authors.items())),
    Task("the busiest file", "Which file was changed most often in the last 15 commits?", ("git",), """
import re
from collections import Counter
log = tools.git.git_log(repo_path="$repo", max_count=15)
hashes = re.findall(r"Commit: '?([0-9a-f]{40})", str(log))
shown = tools.parallel(tools.git.git_show.later(repo_path="$repo", revision=one) for one in hashes)
print(Counter(name for text in shown for name in set(re.findall(r"(\\w+\\.txt)", text))).most_common(1)[0][1])
""", lambda said, data: said.strip() == str(data.touched.most_common(1)[0][1])),
    Task("where it came in", "Which commit brought the word teapot in?", ("git",), """
import re
log = str(tools.git.git_log(repo_path="$repo", max_count=24))
for one in re.findall(r"Commit: '?([0-9a-f]{40})", log):
    text = tools.git.git_show(repo_path="$repo", revision=one)
    if "+teapot" in text:
        print(re.search(r"Change \\d+", text).group())
        break
""", lambda said, data: said.strip() == data.teapot),
    Task("the state of a repository", "Is it clean, on which branch, and what was the last message?", ("git",), """
import re
print("clean" if "nothing to commit" in tools.git.git_status(repo_path="$repo") else "changed")
print("master" in str(tools.git.git_branch(repo_path="$repo", branch_type="local")) or "main")
print(re.search(r"Change \\d+", str(tools.git.git_log(repo_path="$repo", max_count=1))).group())
""", lambda said, data: said.startswith("clean") and "Change 23" in said),
    Task("what is in the database", "Each table with its columns and how many rows it has.", ("sqlite",), """
import ast
for table in ast.literal_eval(str(tools.sqlite.list_tables())):
    name = table["name"]
    columns = ast.literal_eval(str(tools.sqlite.describe_table(table_name=name)))
    count = ast.literal_eval(str(tools.sqlite.read_query(query=f"select count(*) n from {name}")))
    print(name, [column["name"] for column in columns], count[0]["n"])
""", lambda said, data: "400" in said and "30" in said and "'region'" in said),
    Task("a year's revenue", "The revenue of each month, and the best month.", ("sqlite",), """
import ast
months = [f"2026-{month:02d}" for month in range(1, 13)]
query = "select round(sum(total), 2) s from orders where month = '{}'"
rows = tools.parallel(tools.sqlite.read_query.later(query=query.format(month)) for month in months)
sums = {month: ast.literal_eval(str(row))[0]["s"] for month, row in zip(months, rows)}
best = max(sums, key=sums.get)
print(best, sums[best])
""", lambda said, data: said.split()[0] == max(data.revenue, key=lambda month: data.revenue[month])),
    Task("the best customers", "The five customers who spent most, and the last three orders of each.", ("sqlite",), """
import ast
ask = lambda query: ast.literal_eval(str(tools.sqlite.read_query(query=query)))
join = "customers c join orders o on o.customer = c.id"
best = ask(f"select c.id, c.name, sum(o.total) s from {join} group by c.id order by s desc limit 5")
for one in best:
    last = ask(f"select id, total from orders where customer = {one['id']} order by id desc limit 3")
    print(one["name"], round(one["s"], 2), [order["total"] for order in last])
""", lambda said, data: all(name in said for name, _ in data.best[:5])),
    Task("orders of nobody", "How many orders belong to no customer, of how many?", ("sqlite",), """
import ast
ask = lambda query: ast.literal_eval(str(tools.sqlite.read_query(query=query)))
known = {row["id"] for row in ask("select id from customers")}
orders = ask("select customer from orders")
again = ask("select count(*) n from orders")[0]["n"]
print(sum(row["customer"] not in known for row in orders), "of", again)
""", lambda said, data: said.strip() == f"{data.orphans} of 400"),
    Task("a table of sums", "Make a table with the sum of each month, and check that it adds up.", ("sqlite",), """
import ast
ask = lambda query: ast.literal_eval(str(tools.sqlite.read_query(query=query)))
tools.sqlite.create_table(query="create table sums (month text, total real)")
for row in ask("select month, round(sum(total), 2) s from orders group by month"):
    tools.sqlite.write_query(query=f"insert into sums values ('{row['month']}', {row['s']})")
print(ask("select count(*) n, round(sum(total), 2) s from sums")[0])
""", lambda said, data: str(round(sum(data.revenue.values()), 2)) in said and "12" in said),
    Task("errors in the logs", "How many errors stand in all logs together?", ("filesystem",), """
import re
names = re.findall(r"day\\d+\\.log", str(tools.filesystem.list_directory(path="$files/logs")))
texts = tools.parallel(tools.filesystem.read_text_file.later(path=f"$files/logs/{name}") for name in names)
print(sum(str(text).count(" ERROR ") for text in texts))
""", lambda said, data: said.strip() == str(data.errors)),
    Task("words of notes", "The most frequent word of all notes, and the longest note.", ("filesystem",), """
import re
from collections import Counter
names = sorted(set(re.findall(r"note\\d+\\.md", str(tools.filesystem.list_directory(path="$files/notes")))))
read = tools.filesystem.read_text_file
texts = tools.parallel(read.later(path=f"$files/notes/{name}") for name in names)
bodies = {name: text["content"].split("\\n\\n", 1)[1] for name, text in zip(names, texts)}
count = Counter(word for text in bodies.values() for word in re.findall(r"[a-z]{4,}", text))
print(count.most_common(1)[0][0], max(bodies, key=lambda name: len(re.findall(r"[a-z]{4,}", bodies[name]))))
""", lambda said, data: said.split() == [data.words.most_common(1)[0][0], data.longest]),
    Task("sizes", "How many bytes do the logs take together?", ("filesystem",), """
import re
names = re.findall(r"day\\d+\\.log", str(tools.filesystem.list_directory(path="$files/logs")))
infos = tools.parallel(tools.filesystem.get_file_info.later(path=f"$files/logs/{name}") for name in names)
print(sum(int(re.search(r"size: (\\d+)", str(info)).group(1)) for info in infos))
""", lambda said, data: said.strip() == str(data.sizes)),
    Task("an index", "Write index.md with the titles of all notes.", ("filesystem",), """
import re
names = sorted(set(re.findall(r"note\\d+\\.md", str(tools.filesystem.list_directory(path="$files/notes")))))
texts = tools.parallel(tools.filesystem.read_text_file.later(path=f"$files/notes/{name}") for name in names)
titles = [re.search(r"# (Note \\d+: \\w+)", str(text)).group(1) for text in texts]
tools.filesystem.write_file(path="$files/index.md", content="\\n".join(titles))
print(len(titles))
""", lambda said, data: (data.folder / "files/index.md").read_text().split("\n") == data.titles),
    Task("a family tree", "Remember eight people and who is whose parent, then say who has no parent.", ("memory",), """
people = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal"]
for name in people:
    entity = {"name": name, "entityType": "person", "observations": [f"is called {name}"]}
    tools.memory.create_entities(entities=[entity])
for child, parent in zip(people[2:], people):
    tools.memory.create_relations(relations=[{"from": child, "to": parent, "relationType": "child of"}])
graph = tools.memory.read_graph()
persons = {one["name"] for one in graph["entities"] if one["entityType"] == "person"}
print(sorted(persons - {one["from"] for one in graph["relations"]}))
""", lambda said, data: said.strip() == "['Ada', 'Bo']"),
    Task("customers to remember", "Remember the ten best customers with what they spent.", ("memory", "sqlite"), """
import ast
join = "customers c join orders o on o.customer = c.id"
query = f"select c.name, round(sum(o.total), 2) s from {join} group by c.id order by s desc limit 10"
for row in ast.literal_eval(str(tools.sqlite.read_query(query=query))):
    entity = {"name": row["name"], "entityType": "customer", "observations": [f"spent {row['s']}"]}
    tools.memory.create_entities(entities=[entity])
found = tools.memory.search_nodes(query="customer")
print(len(found["entities"]))
""", lambda said, data: said.strip() == "10"),
    Task("what do we know", "What is remembered of five people?", ("memory",), """
for name in ["Ada", "Bo", "Cy", "Di", "Ed"]:
    found = tools.memory.search_nodes(query=f"is called {name}")
    print(*(one["observations"][0] for one in found["entities"]))
""", lambda said, data: said.split("\n")[:2] == ["is called Ada", "is called Bo"]),
    Task("a report", "Report the time, the last five commits, the size of each log.", ("time", "git", "filesystem"), """
import re
now = tools.time.get_current_time(timezone="UTC")["datetime"]
commits = re.findall(r"Change \\d+", str(tools.git.git_log(repo_path="$repo", max_count=5)))
names = re.findall(r"day\\d+\\.log", str(tools.filesystem.list_directory(path="$files/logs")))
infos = tools.parallel(tools.filesystem.get_file_info.later(path=f"$files/logs/{name}") for name in names)
sizes = [re.search(r"size: (\\d+)", str(info)).group(1) for info in infos]
lines = [now, *commits, *map("{} {}".format, names, sizes)]
tools.filesystem.write_file(path="$files/report.md", content="\\n".join(lines))
print(len(commits), len(sizes))
""", lambda said, data: said.strip() == "5 10" and "Change 23" in (data.folder / "files/report.md").read_text()),
)  # fmt: skip


def text_of(task: Task, data: Data) -> str:
    """The code of a task with the folders of its data."""
    folders = {"$repo": str(data.folder / "repo"), "$files": str(data.folder / "files")}
    code = task.code.strip()
    for name, folder in folders.items():
        code = code.replace(name, json.dumps(folder)[1:-1])
    return code
