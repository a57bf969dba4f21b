"""What a report was computed with: the resolved configuration, the environment, and where every file came from."""

from collections.abc import Mapping

from common.config import StudyConfig
from common.few_shot_config import FewShotConfig
from coordinator.html_report.axes import data_table
from coordinator.html_report.markup import Content, Markup, element, joined
from coordinator.html_report.parts import code, facts_list, folded, missing, size, written
from coordinator.html_report.provenance import StoredFile
from coordinator.html_report.reading import flattened
from coordinator.html_report.report import Report

_STATES: Mapping[str, str] = {
    "intact": "\N{CHECK MARK} as its manifest says",
    "altered": "\N{BALLOT X} differs from its manifest",
    "missing": "\N{BALLOT X} missing",
    "unlisted": "no manifest",
    "withheld": "a secret: not read",
}
_COUNTED: Mapping[str, str] = {
    "intact": "as their manifests say",
    "altered": "not as their manifests say",
    "missing": "missing",
    "unlisted": "without a manifest",
    "withheld": "secret, and not read",
}


def configuration(report: Report) -> Markup:
    """Section: what was asked for, field by field."""
    parts: list[Content] = []
    if report.facts or report.task is not None:
        given = {**({} if report.task is None else {"task": report.task}), **report.facts}
        rows = [[code(name), code(written(value))] for name, value in flattened(given)]
        title = "Task and prior" if report.task is not None else "Prior"
        parts.append(folded(title, data_table(["field", "value"], rows, title), is_open=True))
    if report.config is None:
        parts.append(
            missing("The study's configuration is not among an adaptation's results; it is in the run, or the study.")
        )
    else:
        rows, num_defaults = _config_rows(report.config)
        text = f"All {len(rows)} fields as they were resolved; {num_defaults} have their default."
        parts.append(element("p", text))
        parts.append(folded("Resolved configuration", data_table(["field", "value", ""], rows, "Configuration")))
    return joined(*parts)


def _config_rows(config: StudyConfig) -> tuple[list[list[Markup]], int]:
    """Fields with their values, marked where they are defaults; and how many are."""
    usual = StudyConfig(few_shot=None if config.few_shot is None else FewShotConfig())
    defaults = dict(flattened(usual.model_dump(mode="json")))
    rows, num_defaults = [], 0
    tree = config.model_dump(mode="json")
    for inner in (tree["inner"], tree["adapt"]):
        if inner["cost"] is not None and inner["cost"]["table"] is not None:
            table = inner["cost"]["table"]
            inner["cost"]["table"] = f"{len(table['ops'])} times of ops, {table['device']}"  # not each of them
    for name, value in flattened(tree):
        head, *rest = name.split(".")
        # Every family has the defaults of the first.
        key = ".".join([head, "0", *rest[1:]]) if head == "families" else name
        is_default = key in defaults and defaults[key] == value
        num_defaults += is_default
        mark = element("span", "default", class_="note") if is_default else element("strong", "set")
        rows.append([code(name), code(written(value)), mark])
    return rows, num_defaults


def environment(report: Report) -> Markup:
    """Section: versions and device."""
    if report.environment is None:
        return missing("A run's folder does not record what it was computed with; results of adaptations and demos do.")
    return facts_list([(name, written(value)) for name, value in report.environment.items()])


def provenance(report: Report) -> Markup:
    """Section: files, and whether they are as their manifests say."""
    if not report.files:
        return missing("The folder holds no file.")
    counts = {state: sum(file.state == state for file in report.files) for state in _STATES}
    said = ", ".join(f"{count} {_COUNTED[state]}" for state, count in counts.items() if count)
    total = sum(file.num_bytes for file in report.files if file.state != "missing")
    text = f"{len(report.files)} files, {size(total)}: {said}. Sizes and SHA-256 were computed for this page."
    rows = [_file_row(file) for file in report.files]
    table = data_table(["file", "size", "SHA-256", "state"], rows, "Files")
    return joined(element("p", text), folded("Files", table, is_open=len(rows) <= 20))


def _file_row(file: StoredFile) -> list[Content]:
    state = element("span", _STATES[file.state], class_="bad" if file.state in ("altered", "missing") else None)
    digest = element("code", file.sha256, class_="hash") if file.sha256 is not None else joined("-")
    return [
        code(file.name),
        element("span", size(file.num_bytes), title=f"{file.num_bytes:,} bytes", class_="size"),
        digest,
        state,
    ]
