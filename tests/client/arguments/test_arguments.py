"""What callers hand over as prompts and completions: taken for what it is, or refused by name, never for something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import (
    AsyncReferenceClient,
    GrpoClientError,
    ProtocolError,
    ReferenceClient,
    ScoreRequest,
    TextScoreRequest,
)


def of_ids(request: ScoreRequest) -> list[tuple[list[int], list[list[int]]]]:
    return [(g.prompt.tolist(), [c.tolist() for c in g.completions]) for g in request.groups]


def of_text(request: TextScoreRequest) -> list[tuple[Any, list[str]]]:
    return [(g.prompt, list(g.completions)) for g in request.groups]


def each_entry(reference: Any) -> dict[str, Callable[..., Any]]:
    """Every way of asking that takes lists, of ids and of text."""
    transport = httpx.MockTransport(reference)

    def sync(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with ReferenceClient("http://x", transport=transport, max_wait=0) as client:
                return getattr(client, name)(*args, **options)

        return call

    def awaited(name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            handler = httpx.MockTransport(reference.async_handler())
            async with AsyncReferenceClient("http://x", transport=handler, max_wait=0) as client:
                return await getattr(client, name)(*args, **options)

        return lambda *args, **options: asyncio.run(call(*args, **options))

    return {
        "score": sync("score"), "submit": sync("submit"), "async score": awaited("score"), "of": ScoreRequest.of,
        "score_text": sync("score_text"), "async score_text": awaited("score_text"), "text of": TextScoreRequest.of,
    }  # fmt: skip


IDS = ["score", "submit", "async score", "of"]
TEXT = ["score_text", "async score_text", "text of"]


def test_one_completion_a_prompt_needs_no_list_around_it(reference) -> None:
    assert of_ids(ScoreRequest.of([[1, 2], [3, 4]], [[5], [6, 7]])) == [([1, 2], [[5]]), ([3, 4], [[6, 7]])]
    assert of_text(TextScoreRequest.of(["2 + 2 =", "The sky is"], [" 4", " blue"])) == [
        ("2 + 2 =", [" 4"]),
        ("The sky is", [" blue"]),
    ]
    entries = each_entry(reference)
    assert len(entries["score_text"](["2 + 2 =", "The sky is"], [" 4", " blue"])) == 2
    assert len(entries["async score"]([[1, 2], [3, 4]], [[5], [6]])) == 2


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        ([[5], []], [[[5]], [[]]]),  # flat: the second completion is empty
        ([[], [5]], [[[]], [[5]]]),
        ([[[5]], [[6], []]], [[[5]], [[6], []]]),
        ([[[5]], [[]]], [[[5]], [[]]]),
        (np.array([[5, 6], [7, 8]]), [[[5, 6]], [[7, 8]]]),
        (np.array([[[5], [6]], [[7], [8]]]), [[[5], [6]], [[7], [8]]]),
        ([np.array([5]), np.array([6, 7])], [[[5]], [[6, 7]]]),
        ([np.array([[5, 6]]), [np.array([7])]], [[[5, 6]], [[7]]]),
        ((range(5, 7), (7,)), [[[5, 6]], [[7]]]),
    ],
)
def test_depth_says_which_shape_it_is(completions: Any, expected: Any) -> None:
    assert [c for _, c in of_ids(ScoreRequest.of([[1], [2]], completions))] == expected


def test_wanted_ids_are_as_flat_as_the_completions() -> None:
    flat = ScoreRequest.of([[1], [2]], [[5], [6, 7]], token_ids=[[[8, 9]], [[8, 9], [1, 2]]])
    nested = ScoreRequest.of([[1], [2]], [[[5]], [[6, 7]]], token_ids=[[[[8, 9]]], [[[8, 9], [1, 2]]]])
    for request in (flat, nested):
        assert [[t.tolist() for t in g.token_ids or ()] for g in request.groups] == [[[[8, 9]]], [[[8, 9], [1, 2]]]]


STRINGS: list[tuple[Any, Any]] = [
    ("abc", [[" d"]]), (b"abc", [[" d"]]), (["a"], "b"), (["a"], b"b"), (["a"], [b"b"]), (["a"], [[b"b"]]),
    ([b"a"], [["b"]]), ("ab", "cd"), (["a", "b"], [" c", [" d"]]), (["a", "b"], [[" c"], " d"]),
    (bytearray(b"a"), [["b"]]), ({"a": 1}, [["b"]]), (None, [["b"]]), (["a"], None), (["a"], [None]),
    (["a"], [[None]]), ([None], [["b"]]), (["a"], {"b"}), (["a"], [{"b": 1}]),
    ([{"role": "user", "content": "hi"}], [["b"]]), ([[{"role": "user"}]], [["b"]]), ([["hi"]], [["b"]]),
    ([[]], [["b"]]), ([[{"role": 1, "content": "hi"}]], [["b"]]), ([[1, 2]], [["b"]]), (["a"], [[1]]),
    (["a"], [1]), (["a"], 1), (7, [["b"]]), (["a"], [[{"role": "assistant", "content": "4"}]]),
    (["a"], ["b", "c"]), (["a\ud800"], [["b"]]), (["a"], ["\udfff"]),
]  # fmt: skip


@pytest.mark.parametrize("entry", TEXT)
@pytest.mark.parametrize(("prompts", "completions"), STRINGS)
def test_what_is_no_list_of_text(reference, entry: str, prompts: Any, completions: Any) -> None:
    with pytest.raises(ProtocolError, match=r"prompts|completions") as caught:
        each_entry(reference)[entry](prompts, completions)
    assert caught.value.param
    assert reference.seen == []


LISTS: list[tuple[Any, Any]] = [
    ("ab", [[[1]]]), (b"ab", [[[1]]]), (["ab"], [[[1]]]), ([[1]], "ab"), ([[1]], ["ab"]), ([[1]], [["ab"]]),
    ([[1]], [b"ab"]), ([[1]], [[b"\1"]]), ([1, 2], [[[1]]]), ([[1]], [5]), ([[1]], 5), (5, [[[1]]]),
    (None, [[[1]]]), ([[1]], None), ([None], [[[1]]]), ([[1], [2]], [[5], [[6]]]),
    ([[1], [2]], [[[5]], [6]]), ([[1, 2]], [[5], [6]]), ([[1]], [[[[5]]]]), ([[[1]]], [[[5]]]),
    ([[1.0]], [[[5]]]), ([[1]], [[[5.5]]]), ([[True]], [[[5]]]), ([[1, True]], [[[5]]]),
    ([[1, None]], [[[5]]]), ([[1, "2"]], [[[5]]]), ([[-1]], [[[5]]]), ([[1]], [[[-100, 5]]]),
    ([[2**31]], [[[5]]]), ([[1]], [[[2**64]]]), ([[1]], [[[10**400]]]), ([[-(2**70)]], [[[5]]]),
    ([[2**63, -1]], [[[5]]]), (np.array(5), [[[1]]]), ([np.array(5)], [[[1]]]), ([[1]], np.array(5)),
    ([[1]], [[np.array(5.0)]]), ([np.array([1.0])], [[[5]]]), ([np.array([True])], [[[5]]]),
    ([np.array([[1]])], [[[5]]]), ([np.array([2**40])], [[[5]]]), ([np.array(["a"])], [[[5]]]),
    ([np.array([1, None])], [[[5]]]), ({1: 2}, [[[5]]]), ([{1, 2}], [[[5]]]), ([[1]], [[{5}]]),
    ([[1]], [[[5, [6]]]]), ([[1]], [[[complex(1)]]]), ([[float("nan")]], [[[1]]]),
    ([np.array([-1], np.int8)], [[[1]]]), ([np.array([2**64 - 1], np.uint64)], [[[1]]]),
]  # fmt: skip


@pytest.mark.parametrize("entry", IDS)
@pytest.mark.parametrize(("prompts", "completions"), LISTS)
def test_what_is_no_list_of_ids(reference, entry: str, prompts: Any, completions: Any) -> None:
    with pytest.raises(ProtocolError, match=r"prompts|completions") as caught:
        each_entry(reference)[entry](prompts, completions)
    assert caught.value.param
    assert len(str(caught.value)) < 300
    assert reference.seen == []


@pytest.mark.parametrize(
    ("options", "param"),
    [
    ({"temperature": "0.7"}, "temperature"), ({"temperature": True}, "temperature"),
    ({"temperature": None}, "temperature"), ({"temperature": ["1"]}, "temperature[0]"),
    ({"temperature": [1, 2]}, "temperature"), ({"temperature": [True]}, "temperature[0]"),
    ({"temperature": 0}, "groups[0].temperature"), ({"temperature": -1.0}, "groups[0].temperature"),
    ({"temperature": 10**400}, "groups[0].temperature"), ({"temperature": [[1.0]]}, "temperature[0]"),
    ({"extras": "entropy"}, "extras"), ({"extras": [1]}, "extras[0]"),
    ({"extras": ["entropy", None]}, "extras[1]"), ({"extras": ["logits"]}, "return[0]"),
    ({"extras": None}, "extras"), ({"top_k": True}, "top_k"), ({"top_k": 1.0}, "top_k"),
    ({"top_k": "1"}, "top_k"), ({"top_k": -1}, "top_k"), ({"normalizer": ["softmax"]}, "normalizer"),
    ({"normalizer": None}, "normalizer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("entry", ["score", "async score", "submit", "score_text", "async score_text"])
def test_options_of_another_kind(reference, entry: str, options: dict[str, Any], param: str) -> None:
    lists = (["a"], [["b"]]) if "text" in entry else ([[1]], [[[2]]])
    with pytest.raises(ProtocolError) as caught:
        each_entry(reference)[entry](*lists, **options)
    assert caught.value.param == param
    assert reference.seen == []


def test_figures_of_numpy_are_figures() -> None:
    request = ScoreRequest.of(
        [[np.int64(1), 2]],
        [[np.array([3], np.uint16)]],
        temperature=np.float32(0.5),
        top_k=np.int8(2),
        extras=("rank",),
    )
    assert (request.groups[0].temperature, request.top_k) == (0.5, 2)
    assert of_ids(request) == [([1, 2], [[3]])]
    two = ScoreRequest.of([[1], [2]], [[3], [4]], temperature=np.array([0.5, 2.0], np.float32))
    assert [g.temperature for g in two.groups] == [0.5, 2.0]


def test_tensors_are_lists_of_ids() -> None:
    torch = pytest.importorskip("torch")
    assert of_ids(
        ScoreRequest.of(torch.tensor([[1, 2]]), [[torch.tensor([3]), torch.tensor([], dtype=torch.long)]])
    ) == [([1, 2], [[3], []])]
    assert of_ids(ScoreRequest.of([list(torch.tensor([1, 2]))], torch.tensor([[[3], [4]]]))) == [([1, 2], [[3], [4]])]
    assert of_ids(ScoreRequest.of(torch.tensor([[1], [2]]), torch.tensor([[3], [4]]))) == [([1], [[3]]), ([2], [[4]])]
    ids = [[1]], [[[2]]]
    assert ScoreRequest.of(*ids, temperature=torch.tensor(0.5)).groups[0].temperature == 0.5
    assert ScoreRequest.of(*ids, temperature=torch.tensor([0.5], dtype=torch.bfloat16)).groups[0].temperature == 0.5
    for wrong in (
        torch.tensor([1.0]), torch.tensor([True]), torch.tensor(1), torch.tensor([[1]]), torch.tensor([-1]),
        torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], requires_grad=True), [torch.tensor(1.0)],
        [torch.tensor(True)],
    ):  # fmt: skip
        with pytest.raises(ProtocolError, match=r"prompts\[0\]"):
            ScoreRequest.of([wrong], [[[5]]])


class OnAnotherDevice:
    """A tensor that NumPy cannot see before it has been brought here, as one on a GPU."""

    ndim = 1

    def detach(self) -> OnAnotherDevice:
        return self

    def cpu(self) -> np.ndarray:
        return np.array([1, 2])

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __len__(self) -> int:
        return 2


def test_a_tensor_elsewhere_is_brought_here() -> None:
    assert of_ids(ScoreRequest.of([OnAnotherDevice()], [[OnAnotherDevice()]])) == [([1, 2], [[1, 2]])]


def test_messages_that_cannot_travel_are_refused_by_name(reference) -> None:
    message = {"role": "user", "content": [{"type": "image", "image": object()}]}
    for entry in ("score_text", "async score_text"):
        with pytest.raises(GrpoClientError, match="JSON"):
            each_entry(reference)[entry]([[message]], [["b"]])
    assert reference.seen == []


def test_requests_built_by_hand_are_looked_at_as_well(reference) -> None:
    from grpo_client import Group, TextGroup

    transport = httpx.MockTransport(reference)
    wrong: list[Any] = [
        ScoreRequest((Group([1, 2], ([3],)),)),  # pyright: ignore[reportArgumentType]
        ScoreRequest((Group(np.array([1.5]), (np.array([3], np.int32),)),)),  # pyright: ignore[reportArgumentType]
        ScoreRequest((Group(np.array([1], np.int32), np.array([3], np.int32)),)),  # pyright: ignore[reportArgumentType]
        TextScoreRequest((TextGroup("a", "bcd"),)),  # pyright: ignore[reportArgumentType]
        TextScoreRequest((TextGroup("a", (b"bcd",)),)),  # pyright: ignore[reportArgumentType]
        TextScoreRequest((TextGroup(b"a", ("b",)),)),  # pyright: ignore[reportArgumentType]
        {"groups": []},
        None,
    ]
    with ReferenceClient("http://x", transport=transport, max_wait=0) as client:
        for request in wrong:
            for call in (client.score_request, client.submit_request):
                with pytest.raises(ProtocolError):
                    call(request)
    assert reference.seen == []
