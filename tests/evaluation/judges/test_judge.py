"""Asking, remembering and replaying a judge."""

from __future__ import annotations

import json
import threading

import pytest

from locap.evaluation.judges import Judge, Request, open_judge
from locap.evaluation.judges.answers import AnswerFile
from locap.evaluation.judges.client import MAX_REPLY_BYTES, Endpoint, check_url
from locap.evaluation.judges.requests import Reply, request_key
from locap.utils.errors import DataError, MissingDependencyError, UsageError

SECRET = "sk-verysecret0123456789"


def ask(judge: Judge, texts):
    return judge.map(lambda text: judge.ask(Request(text, 3)).content, texts, "questions")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_asked_once_and_remembered(server, tmp_path):
    options = server.options(tmp_path)
    server.answer = lambda body: body["messages"][0]["content"].upper()
    assert ask(open_judge(**options), ["a", "b", "a"]) == ["A", "B", "A"]
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in server.bodies} == {("fake", 0.0, 3)}
    asked = len(server.bodies)
    assert ask(open_judge(**options), ["b", "a"]) == ["B", "A"]
    assert len(server.bodies) == asked
    lines = lines_of(tmp_path / "answers.jsonl")
    assert {(line["prompt"], line["content"], line["answered_by"]) for line in lines} == {
        ("a", "A", "fake-judge-0613"),
        ("b", "B", "fake-judge-0613"),
    }
    assert lines[0]["key"] == request_key("fake", Request(lines[0]["prompt"], 3))


def test_the_key_depends_on_everything_that_changes_an_answer():
    requests = [
        Request("a", 3),
        Request("b", 3),
        Request("a", 4),
        Request("a", 3, 0.5),
        Request("a", 3, run=1),
        Request("a", 3, image=b"x"),
        Request("a", 3, image=b"y"),
    ]
    keys = [request_key("m", request) for request in requests] + [request_key("n", requests[0])]
    assert len(set(keys)) == len(keys)
    assert request_key("m", Request("a", 3, 0)) == keys[0]
    assert request_key("m", Request("\ud800", 3)) != keys[0]  # what is no Unicode text is a prompt as well


def test_replay_needs_no_network(server, tmp_path):
    ask(open_judge(**server.options(tmp_path)), ["a", "b"])
    asked = len(server.bodies)
    replayed = open_judge(judge_file=str(tmp_path / "answers.jsonl"))
    assert (replayed.name, replayed.endpoint) == ("fake", None)
    assert ask(replayed, ["b", "a"]) == ["1.0", "1.0"]
    with pytest.raises(
        MissingDependencyError, match=r"lacks answers of 'fake' to 2 of 3 questions(.|\n)*answers of fake"
    ):
        ask(replayed, ["a", "c", "d"])
    assert len(server.bodies) == asked
    with pytest.raises(MissingDependencyError, match="lacks answers of 'other' to 1 of 1"):
        ask(open_judge(judge="other", judge_file=str(tmp_path / "answers.jsonl")), ["a"])


def test_what_was_answered_before_a_failure_is_kept(server, tmp_path):
    served = []

    def answer(body):
        served.append(body)
        return "0.5" if len(served) <= 3 else (400, {}, b"no more")

    server.answer = answer
    options = server.options(tmp_path, judge_parallel="1")
    with pytest.raises(MissingDependencyError, match=r"HTTP 400 no more(.|\n)*kept in .*answers.jsonl"):
        ask(open_judge(**options), list("abcdef"))
    assert len(lines_of(tmp_path / "answers.jsonl")) == 3
    assert len(served) == 4  # the rest was not asked
    server.answer, server.bodies[:] = lambda body: "1.0", []
    assert ask(open_judge(**options), list("abcdef")) == ["0.5"] * 3 + ["1.0"] * 3
    assert server.prompts() == ["d", "e", "f"]


def test_an_interruption_keeps_what_was_answered(server, tmp_path, monkeypatch):
    """As if Ctrl-C came while the third answer is waited for."""
    monkeypatch.setattr("locap.evaluation.judges.judge.track", lambda items, what: interrupt(items))

    def interrupt(items):
        yield from items[:2]
        raise KeyboardInterrupt

    judge = open_judge(**server.options(tmp_path, judge_parallel="1"))
    with pytest.raises(KeyboardInterrupt):
        ask(judge, list("abcdefgh"))
    assert judge.endpoint.stopped.is_set()
    assert len(lines_of(tmp_path / "answers.jsonl")) >= 2


def test_a_line_cut_off_by_a_crash_is_asked_again(server, tmp_path):
    path, options = tmp_path / "answers.jsonl", server.options(tmp_path)
    ask(open_judge(**options), ["a", "b"])
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        server.bodies.clear()
        assert ask(open_judge(**options), ["a", "b"]) == ["1.0", "1.0"]
        assert len(server.bodies) == 1
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    path.write_bytes(whole[:30])
    ask(open_judge(**options), ["a"])
    assert len(lines_of(path)) == 1


def test_of_two_lines_with_one_key_the_first_counts(tmp_path):
    line = {"key": request_key("m", Request("a", 3)), "model": "m", "answered_by": "m"}
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({**line, "content": text}) + "\n" for text in ("0.1", "0.9")))
    file = AnswerFile(path, must_exist=True)
    assert file.get("m", Request("a", 3)) == Reply("0.1", "m")
    assert file.add("m", Request("a", 3), Reply("0.7", "m")).content == "0.1"
    assert len(lines_of(path)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"key": "k"}\n', "line 1(.|\n)*the texts key, model, content, answered_by"),
        (b"nonsense\n", "no judge's answer"),
        (b'{"key": 1, "model": "m", "content": "", "answered_by": ""}\n', "no judge's answer"),
        (b"\xff\n", "not UTF-8"),
        (b"[" * 100_000 + b"\n", "no judge's answer"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused(tmp_path, content, message):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_judge(judge_file=str(path))


@pytest.mark.parametrize(
    "trouble",
    [
        (500, {}, b"oops"),
        (429, {"Retry-After": "1"}, b""),
        (200, {}, b"not JSON"),
        (200, {}, b"[" * 100_000),
        (200, {}, b"{}"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": 1}}]}'),
        (200, {}, b'{"choices": [{"message": {"content": "1"}}], "model": 5}'),
        (200, {}, b"x" * (MAX_REPLY_BYTES + 1)),
        (200, {"Content-Length": "1000"}, b'{"choices'),
        0.0,
    ],
)
def test_trouble_that_may_pass_is_tried_again(server, tmp_path, trouble):
    answers = iter([trouble, trouble, "0.5"])
    server.answer = lambda body: next(answers)
    assert ask(open_judge(**server.options(tmp_path)), ["a"]) == ["0.5"]
    assert len(server.bodies) == 3


def test_trouble_that_stays_is_reported(server, tmp_path):
    server.answer = lambda body: (503, {}, b"")
    with pytest.raises(MissingDependencyError, match=r"fake at 127.0.0.1:\d+ gave no answer: after 6 tries: HTTP 503"):
        ask(open_judge(**server.options(tmp_path)), ["a", "b"])
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_silent_server_is_left_in_time(server):
    server.answer = lambda body: 5.0
    endpoint = Endpoint(server.url, "fake", timeout=0.1, tries=2)
    with pytest.raises(MissingDependencyError, match=r"after 2 tries: .*timed out"):
        endpoint.ask(Request("a", 3))


def test_nobody_listens(tmp_path):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "fake", tries=2, pause=0.001)
    with pytest.raises(MissingDependencyError, match="gave no answer: after 2 tries"):
        endpoint.ask(Request("a", 3))


def test_redirects_are_not_followed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for status in (301, 302, 303, 307, 308):
        server.answer = lambda body, status=status: (status, {"Location": f"{server.url}/elsewhere"}, b"")
        server.bodies.clear()
        with pytest.raises(MissingDependencyError, match=rf"HTTP {status}, a redirect to 127.0.0.1"):
            ask(open_judge(**server.options(tmp_path)), ["a"])
        assert len(server.bodies) == 1


def test_no_more_requests_at_a_time_than_allowed(server, tmp_path):
    barrier = threading.Barrier(3, timeout=20)

    def answer(body):
        barrier.wait()  # three are needed at a time, or this breaks
        return "1.0"

    server.answer = answer
    ask(open_judge(**server.options(tmp_path, judge_parallel="3")), [str(i) for i in range(9)])
    assert server.most_at_once == 3


def test_the_key_is_sent_and_nowhere_else(server, tmp_path, monkeypatch, capfd):
    """Not in the file of answers, not in a message, not even if the server repeats it."""
    monkeypatch.setenv("MY_KEY", SECRET)
    options = server.options(tmp_path, judge_key_variable="MY_KEY")
    server.answer = lambda body: f"1.0 {SECRET}"
    server.model = f"model of {SECRET}"
    judge = open_judge(**options)
    assert ask(judge, ["a"]) == ["1.0 ***"]
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    server.answer = lambda body: (401, {}, f"Incorrect API key\n{SECRET}\x1b[31m".encode())
    with pytest.raises(
        MissingDependencyError, match=r"HTTP 401 Incorrect API key \*\*\*(.|\n)*check the API key"
    ) as caught:
        ask(open_judge(**options), ["b"])
    server.answer = lambda body: (302, {"Location": f"http://{SECRET}.example/"}, b"")
    with pytest.raises(MissingDependencyError) as redirected:
        ask(open_judge(**options), ["b"])
    seen = [(tmp_path / "answers.jsonl").read_text(), str(caught.value), str(redirected.value), *capfd.readouterr()]
    seen += [repr(judge.endpoint), repr(caught.value.__context__)]
    assert not any(SECRET in text for text in seen)
    assert "\x1b" not in str(caught.value)


def test_a_key_given_in_place_of_its_variable_is_not_shown(tmp_path):
    for name in (SECRET, "abcdef0123456789"):
        with pytest.raises(UsageError, match="environment variable") as caught:
            open_judge(judge="m", judge_url="https://example.com/v1", judge_key_variable=name)
        assert name not in str(caught.value)


def test_the_common_key_is_for_encrypted_and_local_endpoints_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    sent = {
        url: Endpoint(url, "m")._key for url in ("http://10.0.0.7:8000/v1", "http://localhost/v1", "https://a.b/v1")
    }
    assert sent == {"http://10.0.0.7:8000/v1": "", "http://localhost/v1": SECRET, "https://a.b/v1": SECRET}
    assert Endpoint("http://10.0.0.7/v1", "m", key_variable="OPENAI_API_KEY")._key == SECRET
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(UsageError, match="characters"):
        Endpoint("https://a.b/v1", "m")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1", "file:///etc/passwd", "host:8000/v1", "", "http://", "http://[::1/v1", "http://host:port/v1",
        f"https://user:{SECRET}@host/v1", f"https://host/v1?key={SECRET}", f"https://host/v1#{SECRET}",
        "http://host/v1\nX: y", "http://ho st/v1",
    ],
)  # fmt: skip
def test_only_plain_web_addresses_are_asked(url):
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert SECRET not in str(caught.value)


def test_addresses_of_this_machine():
    assert check_url("http://127.0.0.1:8000/v1") == ("127.0.0.1:8000", True, False)
    assert check_url("http://[::1]/v1") == ("::1", True, False)
    assert check_url("https://api.example.com/v1") == ("api.example.com", False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "not said which model judges"),
        ({"judge": "m"}, "not said where the judge m is"),
        ({"judge": "m", "judge_url": "http://h/v1", "judge_parallel": "0"}, "judge_parallel is out of its range"),
        ({"judge": "m", "judge_url": "http://h/v1", "judge_timeout": "soon"}, "judge_timeout is out of its range"),
        ({"judge": "m", "judge_url": "http://h/v1", "judge_timeout": "nan"}, "judge_timeout is out of its range"),
        ({"judge_file": "f.jsonl", "judge_url": "http://h/v1"}, "judge_url has no use"),
    ],
)
def test_options_that_describe_no_judge(monkeypatch, options, message):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match=message):
        open_judge(**options)


def test_which_judge_a_file_replays_must_be_clear(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("")
    with pytest.raises(UsageError, match="judge file is empty"):
        open_judge(judge_file=str(path))
    line = {"key": "k", "content": "", "answered_by": ""}
    path.write_text("".join(json.dumps({**line, "model": name}) + "\n" for name in ("m", "n")))
    with pytest.raises(UsageError, match=r"several judges(.|\n)*m, n(.|\n)*judge=NAME"):
        open_judge(judge_file=str(path))
    with pytest.raises(DataError, match="does not exist"):
        open_judge(judge_file=str(tmp_path / "answer.jsonl"))


def test_answers_are_kept_in_the_cache_by_default(server, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    ask(open_judge(judge="../org/fake judge"), ["a"])
    assert [path.name for path in (tmp_path / "judges").iterdir()] == ["org_fake_judge.jsonl"]
