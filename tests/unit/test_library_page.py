"""The page for users of the library: its code runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def test_every_block_of_the_page_runs_after_the_one_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for i, block in enumerate(blocks):
        exec(compile(block, f"library.md, block {i}", "exec"), names)
    said = capsys.readouterr().out
    assert all(float(value) > 0.5 for value in re.findall(r"(?:batchtopk|jumprelu) (\S+)", said)), said
    assert names["x_hat"].shape == (1000, 32)
    assert names["shared"].rows(range(6000)).equal(names["store"].rows(range(6000)))
