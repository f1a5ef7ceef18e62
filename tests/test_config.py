"""The configuration: TOML both ways, and what is said of a wrong key."""

from __future__ import annotations

import pytest

from vitedge.config import RunConfig, load_config, make_config, merge, save_config
from vitedge.errors import VitedgeError


def test_toml_both_ways(tmp_path) -> None:
    config = make_config({"model": {"model": "a/b.pth", "heads": 3}, "calib": {"calib_size": 77}})
    save_config(tmp_path / "vitedge.toml", config)
    assert make_config(load_config(tmp_path / "vitedge.toml")) == config
    save_config(tmp_path / "default.toml", RunConfig())
    assert make_config(load_config(tmp_path / "default.toml")) == RunConfig()


def test_later_layers_win_and_none_says_nothing() -> None:
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"x": None, "y": 3}}, {"b": 4}) == {"a": {"x": 1, "y": 3}, "b": 4}


@pytest.mark.parametrize(
    ("values", "named", "hint"),
    [
        ({"model": {"hads": 3}}, "model.hads", "'heads'"),
        ({"calibr": {}}, "calibr", "'calib'"),
        ({"model": {"zzz": 3}}, "model.zzz", "known are"),
    ],
)
def test_unknown_options_are_named_with_the_nearest(values, named, hint) -> None:
    with pytest.raises(VitedgeError) as caught:
        make_config(values, source="the file x.toml")
    assert "The file x.toml" in caught.value.what
    assert f"'{named}'" in caught.value.why and hint in caught.value.why


def test_wrong_values_and_targets() -> None:
    with pytest.raises(VitedgeError, match="calib_size = 0"):
        make_config({"calib": {"calib_size": 0}})
    with pytest.raises(VitedgeError, match="no target 'abacus'"):
        make_config({"build": {"abacus": {}}})
    with pytest.raises(VitedgeError, match="no option 'colour'"):
        make_config({"build": {"onnxruntime": {"colour": "red"}}})


def test_files_that_are_not_toml(tmp_path) -> None:
    (tmp_path / "bad.toml").write_text("model = [")
    with pytest.raises(VitedgeError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(VitedgeError, match="can't be read"):
        load_config(tmp_path / "none.toml")
