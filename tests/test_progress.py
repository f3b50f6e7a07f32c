import re

from groupsae import progress


def test_away_from_a_terminal_progress_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.0)
    with progress.bar("train", 2000) as advance:
        advance(500)
        advance(1500)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train: 500 of 2,000 tokens \(25%\), [\d,]+/s, \d+ s left", lines[0])
    assert re.fullmatch(r"train: 2,000 tokens in \d+\.\d s", lines[-1])


def test_without_a_total_there_is_a_rate_and_no_remaining_time(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.0)
    with progress.bar("tokens", None) as advance:
        advance(500)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tokens: 500 tokens, [\d,]+/s", lines[0])


def test_lines_are_rare(capsys):
    with progress.bar("train", 100) as advance:
        for _ in range(100):
            advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_a_terminal_of_80_columns_there_is_a_bar_on_stderr_with_nothing_cut_off(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("time.monotonic", iter(range(0, 10**6, 1000)).__next__)
    monkeypatch.setenv("COLUMNS", "80")
    with progress.bar("eval reconstruction", 100_000_000) as advance:
        advance(100_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "eval reconstruction" in err and "100000000/100000000" in err and "100,000 tokens/s" in err
    assert "…" not in err and "left" in err


def test_a_stage_that_fails_does_not_say_that_it_is_done(capsys):
    try:
        with progress.bar("train", 2000) as advance:
            advance(5)
            raise ValueError
    except ValueError:
        pass
    assert capsys.readouterr().err == ""
