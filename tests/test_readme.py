"""What the README promises is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    # Made-up logs instead of the download, and a smaller model, so that it takes seconds.
    block = block.replace('"movielens-1m"', '"synthetic"').replace(
        '"batch.group=8"', '"batch.group=8", "model.width=8", "model.field_width=8"'
    )
    exec(compile(block, "README.md", "exec"), {})  # our own text, to prove that it runs
    printed = capsys.readouterr().out
    assert "lcn" in printed
    assert "probability" in printed


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_commands_of_the_readme_exist() -> None:
    from lcn.cli import COMMANDS

    named = set(re.findall(r"^    lcn (\w+)", README, flags=re.M))
    assert named
    assert named <= set(COMMANDS)
