"""What the double of a model says to each task that comes along: the turns of a good model."""

from __future__ import annotations

__all__ = ["GOOD"]


def code(text: str, thought: str = "I look.") -> str:
    return f"{thought}\n```python\n{text.strip()}\n```"


ASK = "import ast\nask = lambda query: ast.literal_eval(str(tools.sqlite.read_query(query=query)))\n"
LOG = "import re\nlog = str(tools.git.git_log(repo_path=REPO, max_count=50))\n"
NOTES = """
import re
names = sorted(set(re.findall(r"\\w+\\.txt", str(tools.filesystem.list_directory(path=FOLDER + "/notes")))))
texts = tools.parallel(tools.filesystem.read_text_file.later(path=f"{FOLDER}/notes/{name}") for name in names)
texts = {name: text["content"] for name, text in zip(names, texts)}
"""

GOOD: dict[str, list[str]] = {
    "What time is it in Tokyo now?": [
        code("print(tools.time.get_current_time(timezone='Asia/Tokyo')['datetime'][11:16])"), "FINAL: {last}",
    ],
    "When it is 14:30 in New York": [
        code("told = tools.time.convert_time(source_timezone='America/New_York', time='14:30', "
             "target_timezone='Asia/Kathmandu')\nprint(told['target']['datetime'][11:16])"), "FINAL: {last}",
    ],
    "How many hours is Tokyo ahead": [
        code("told = tools.time.convert_time(source_timezone='Africa/Nairobi', time='12:00', "
             "target_timezone='Asia/Tokyo')\nprint(told['time_difference'])"), "FINAL: 6 hours, from {last}",
    ],
    "In which of Lima, Lagos and Dubai": [
        code("zones = ['America/Lima', 'Africa/Lagos', 'Asia/Dubai']\n"
             "times = tools.parallel(tools.time.get_current_time.later(timezone=zone) for zone in zones)\n"
             "print(min(zip(zones, times), key=lambda pair: pair[1]['datetime'][-6:].replace('-', ' '))[0])"),
        "FINAL: {last}",
    ],
    "Which two of Asia/Tokyo": [
        code("for zone in ['Asia/Tokyo', 'Asia/Seoul', 'Asia/Manila']:\n"
             "    print(zone, tools.time.get_current_time(timezone=zone)['datetime'][-6:])"),
        "FINAL: Tokyo and Seoul",
    ],
    "Which is the first full hour UTC": [
        code("convert = tools.time.convert_time\nfor hour in range(24):\n"
             "    later = [convert.later(source_timezone='UTC', time=f'{hour:02d}:00', target_timezone=zone)"
             " for zone in ('Asia/Dubai', 'Asia/Kolkata')]\n"
             "    if all(int(told['target']['datetime'][11:13]) >= 9 for told in tools.parallel(later)):\n"
             "        print(f'{hour:02d}:00')\n        break"), "FINAL: {last}",
    ],
    "How many commits has": [code(LOG + "len(re.findall('Commit:', log))"), "FINAL: {last}"],
    "Who made most commits": [
        code(LOG + "from collections import Counter\n"
             "Counter(re.findall(r'Author: .*?([A-Z][a-z]+)', log)).most_common(1)"), "FINAL: {last}",
    ],
    "Which commit of the git": [
        code(LOG + "for one in re.findall(r\"Commit: '?([0-9a-f]{40})\", log):\n"
             "    text = str(tools.git.git_show(repo_path=REPO, revision=one))\n"
             "    if '+a teapot' in text:\n        print(re.search(r'Change number \\d+', text).group())"),
        "FINAL: {last}",
    ],
    "What is the message of the last commit": [
        code(LOG + "re.search(r'Change number \\d+', log).group()"), "FINAL: {last}",
    ],
    "Which files does the commit": [
        code(LOG + "hashes = dict(zip(re.findall(r'Change number (\\d+)', log), "
             "re.findall(r\"Commit: '?([0-9a-f]{40})\", log)))\n"
             "sorted(set(re.findall(r'[ab]\\.txt', str(tools.git.git_show(repo_path=REPO, revision=hashes['4'])))))"),
        "FINAL: {last}",
    ],
    "In the SQLite database: what is the value": [
        code(ASK + "ask('select sum(price * stock) value from products')[0]['value']"), "FINAL: {last}",
    ],
    "In the SQLite database: which product is": [
        code(ASK + "ask('select name from products order by price desc limit 1')"), "FINAL: {last}",
    ],
    "In the SQLite database: which products were": [
        code(ASK + "ask('select name from products where name not in (select product from orders)')"), "FINAL: {last}",
    ],
    "In the SQLite database: how many orders": [
        code(ASK + "ask(\"select count(*) n from orders where product = 'lamp'\")[0]['n']"), "FINAL: {last}",
    ],
    "In the SQLite database: raise": [
        code("tools.sqlite.write_query(query=\"update products set price = price + 2 where name = 'mug'\")"),
        code(ASK + "ask(\"select price from products where name = 'mug'\")[0]['price']"), "FINAL: {last}",
    ],
    "How many lines with ERROR": [code(NOTES + "sum(text.count('ERROR') for text in texts.values())"), "FINAL: {last}"],
    "Which file in {folder}/notes has the most lines": [
        code(NOTES + "max(texts, key=lambda name: texts[name].count('\\n'))"), "FINAL: {last}",
    ],
    "Write a file": [
        code(NOTES + "lines = [f\"{name} {text.count('ERROR')}\" for name, text in sorted(texts.items())]\n"
             "tools.filesystem.write_file(path=FOLDER + '/summary.txt', content='\\n'.join(lines))"),
        "FINAL: It is written.",
    ],
    "Which file in {folder}/notes has the word": [
        code(NOTES + "[name for name, text in texts.items() if 'needle' in text]"), "FINAL: {last}",
    ],
    "Remember in the knowledge graph": [
        code("entity = {'name': 'Ada', 'entityType': 'person', 'observations': ['likes tea']}\n"
             "tools.memory.create_entities(entities=[entity])\ntools.memory.read_graph()"), "FINAL: {last}",
    ],
    "what time is it in Tokyo right now?": [
        code("print(tools.time.get_current_time(timezone='Asia/Tokyo')['datetime'][11:16])"), "FINAL: {last}",
    ],
    "Turn on the lamp": [code("tools.search('turn on a lamp')"), "CANNOT: no tool here switches lamps."],
    "What is the balance": [code("tools.search('balance of an account')"), "CANNOT: no tool here knows your account."],
    "Send an SMS": ["CANNOT: no tool here sends an SMS."],
}  # fmt: skip
"""By the beginning of the task. `{last}` is what the last code printed or ended with; `REPO` and `FOLDER` are set."""
