"""Pages of the site that are made of what stands elsewhere: README, examples, docstrings, files.

Examples are notebooks, too, which each example's page offers.

Manuals link to files beside them, to modules and to examples, as they lie in the repository;
here each such link is led to a page. Nothing is written twice.
"""

import html
import importlib
import inspect
import os
import re
from pathlib import Path

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
WHOLE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside of docs/ that are pages, and the pages."""

_LINK = re.compile(r"(?<!\\)(\]\()([^)\s]+)(\))")
_CELL = re.compile(r"^# %%( \[markdown\])?.*\n", re.M)
_ROLE = re.compile(r":(?:func|class|data|mod|meth|attr|exc):<code>(~?)([\w.]+)</code>")
_PAGES = {page: name for name, page in WHOLE.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and leaves the navigation of examples and API to them."""
    made = {page: (ROOT / name).read_text() for name, page in WHOLE.items()}
    examples = sorted((ROOT / "examples").rglob("*.py"))
    for path in examples:
        page, script = page_of(path), path.read_text()
        made[page] = from_cells(script)
        if path.parent == ROOT / "examples":
            book = page.removesuffix(".md") + ".ipynb"
            files.append(File.generated(config, book, content=to_notebook(script)))
            title, _, rest = made[page].partition("\n")
            offer = f"[As a notebook]({os.path.basename(book)}), or [as a script]({path.name}.txt)."
            made[page] = f"{title}\n\n{offer}\n{rest}"
            text = page.replace(os.path.basename(page), f"{path.name}.txt")
            files.append(File.generated(config, text, content=script))
    made["examples/index.md"] = (ROOT / "examples" / "README.md").read_text()
    manuals = files.documentation_pages()
    texts = {file.src_uri: Path(file.abs_src_path).read_text() for file in manuals}
    targets = {
        path
        for uri, text in {**made, **texts}.items()
        for path in map(lambda link, uri=uri: outside(uri, link[1]), _LINK.findall(text))
        if path is not None
    }
    rooms = public_names()
    modules = {home for names in rooms.values() for home in names.values()}
    modules |= {module_of(path) for path in targets if path.suffix == ".py" and is_ours(path)}
    made["api/index.md"] = index_of(rooms)
    made |= {f"api/{name}.md": f"# {short(name)}\n\n`{name}`\n\n::: {name}\n" for name in modules}
    for path in targets:
        if page_of(path) not in made:
            kind = {".py": "python", ".toml": "toml", ".json": "json"}.get(path.suffix, "text")
            title = path.relative_to(ROOT).as_posix()
            made[page_of(path)] = f"# {title}\n\n````{kind}\n{path.read_text()}````\n"
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    found = {
        "examples/": [u for u in sorted(made) if u.startswith("examples/") and "/index" not in u],
        "api/": by_room(modules),
    }
    for entry in config.nav or []:
        for name, place in entry.items() if isinstance(entry, dict) else ():
            if isinstance(place, str) and place in found:
                entry[name] = [f"{place}index.md", *found[place]]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files of the repository to their pages."""
    uri = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        path = resolve(uri, target)
        if path is None:
            return match[0]
        new = os.path.relpath(page_of(path), os.path.dirname(uri) or ".")
        return f"{match[1]}{new}{'#' + anchor if anchor else ''}{match[3]}"

    return _LINK.sub(led, markdown)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of the roles that docstrings have."""
    module = page.file.src_uri.removeprefix("api/").removesuffix(".md")

    def linked(match: re.Match[str]) -> str:
        name = match[2]
        full = name if name.startswith("jaxunlearn") else f"{module}.{name}"
        shown = html.escape(name.rpartition(".")[2] if match[1] else name)
        return f'<autoref identifier="{full}" optional><code>{shown}</code></autoref>'

    return _ROLE.sub(linked, text).replace("::</p>", ":</p>")


def resolve(uri: str, target: str) -> Path | None:
    """Finds the file that a link of a page means; ``None`` for addresses and for no file."""
    if not target or re.match(r"[a-z]+:", target):
        return None
    folder = ROOT if uri in _PAGES else ROOT / "docs" / os.path.dirname(uri)
    if uri.startswith("examples/"):
        folder = ROOT / "examples"
    path = Path(os.path.normpath(folder / target))
    return path if path.is_file() else None


def outside(uri: str, target: str) -> Path | None:
    """Finds the file that a link means if it is no page or picture of the manuals."""
    path = resolve(uri, target.partition("#")[0])
    return None if path is None or path.is_relative_to(ROOT / "docs") else path


def page_of(path: Path) -> str:
    """Returns the page of a file of the repository."""
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name == "examples/README.md":
        return "examples/index.md"
    if name.startswith("examples/"):
        return f"examples/{name.removeprefix('examples/').replace('/', '.').removesuffix('.py')}.md"
    if is_ours(path) and path.suffix == ".py":
        return f"api/{module_of(path)}.md"
    return WHOLE.get(name, f"files/{name}.md")


def is_ours(path: Path) -> bool:
    """Tells whether a file belongs to the package."""
    return path.is_relative_to(ROOT / "jaxunlearn")


def module_of(path: Path) -> str:
    """Returns the name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def from_cells(script: str) -> str:
    """Returns a script in percent format as a page: cells of text as text, the others as code."""
    begin, *parts = _CELL.split(script)
    made = []
    for marked, cell in zip(parts[::2], parts[1::2], strict=True):
        body = cell.strip("\n")
        if marked:
            made.append(re.sub(r"^# ?", "", body, flags=re.M))
        elif body:
            made.append(f"```python\n{body}\n```")
    title = begin.strip().strip('"').partition("\n")[0]
    return "\n\n".join([f"# {title}", *made]) if begin.strip() else "\n\n".join(made)


def to_notebook(script: str) -> str:
    """Returns a script in percent format as a notebook that was not run; its title is a cell."""
    begin, cell = _CELL.split(script, maxsplit=1)[0], _CELL.search(script)
    title = begin.strip().strip('"').partition("\n")[0]
    cells = f"# %% [markdown]\n# # {title}\n\n{script[cell.start() if cell else 0 :]}"
    book = jupytext.reads(cells, fmt="py:percent")
    book.metadata |= {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for number, one in enumerate(book.cells):
        one["id"] = f"cell-{number}"  # the same each time
    return jupytext.writes(book, fmt="ipynb") + "\n"


def public_names() -> dict[str, dict[str, str]]:
    """Returns the names of the package and of its rooms: by room, where each is defined."""
    import jaxunlearn

    def homes(room: object, names: list[str]) -> dict[str, str]:
        found = {}
        for name in names:
            value = getattr(room, name)
            if inspect.ismodule(value):
                found[name] = value.__name__
            else:
                own = getattr(value, "__module__", "")
                found[name] = own if own.startswith("jaxunlearn") else room.__name__
        return found

    rooms = [name for name in jaxunlearn.__all__ if name in jaxunlearn._ROOMS]
    names = sorted(set(jaxunlearn.__all__) - set(rooms))
    return {"jaxunlearn": homes(jaxunlearn, names)} | {
        f"jaxunlearn.{name}": homes(module, list(getattr(module, "__all__", ())))
        for name in rooms
        for module in [importlib.import_module(f"jaxunlearn.{name}")]
    }


def short(module: str) -> str:
    """Returns the name of a module without the package's."""
    return module.removeprefix("jaxunlearn.")


def by_room(modules: set[str]) -> list[dict[str, str | list[dict[str, str]]]]:
    """Returns the modules as entries of the navigation, those of a room together."""
    rooms: dict[str, list[str]] = {}
    for name in sorted(modules):
        rooms.setdefault(short(name).partition(".")[0], []).append(name)
    return [
        {room: [{short(name): f"api/{name}.md"} for name in names]} for room, names in rooms.items()
    ]


def index_of(rooms: dict[str, dict[str, str]]) -> str:
    """Returns the page that lists all public names, room by room."""
    parts = ["# API", "All that has no leading underscore; `import jaxunlearn as ju`."]
    for room, names in rooms.items():
        short = room.replace("jaxunlearn", "ju")
        parts.append(f"## {short}")
        links = [f"[`{name}`]({home}.md)" for name, home in sorted(names.items())]
        parts.append(", ".join(links))
    return "\n\n".join(parts) + "\n"
