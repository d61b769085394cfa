"""Batch mechanics: many requests and items at once, one bad item never hurting a neighbour.

An item that fails is carried along as its `RequestError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clipserve.cost import Budget, PassCost, out_of_memory, overloaded
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError
from clipserve.meter import Meter
from clipserve.wire.messages import Embedded, Result, Usage

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


def in_turns(sizes: Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Requests in the order in which they are answered: those of few items first, several at once.

    Args:
        sizes: how many items each has, by its place in the batch; those of as many stay in its order.
        most: items of one forward pass.

    Yields:
        Places of one request, or of several that have as many items together as a forward pass takes.
    """
    turn: list[int] = []
    items = 0
    for place in sorted(sizes, key=lambda place: (sizes[place], place)):
        items += sizes[place]
        if turn and items > most:
            yield turn
            turn, items = [], sizes[place]
        turn.append(place)
    if turn:
        yield turn


def embed_fairly(
    embed: Callable[[Sequence[ItemT | RequestError], Budget], list[Result]],
    requests: Sequence[Sequence[ItemT | RequestError]],
    budget: Budget,
    meter: Meter,
) -> list[list[Result]]:
    """Embeds the items of several requests together: the first item of each before the second of any."""
    places = sorted(
        ((request, item) for request, items in enumerate(requests) for item in range(len(items))),
        key=lambda place: place[1],
    )
    results = embed([requests[request][item] for request, item in places], budget)
    meter.add("ClipItems", len(results))
    for result in results:
        if isinstance(result, RequestError):
            meter.error(result.code)
    found = dict(zip(places, results, strict=True))
    return [[found[request, item] for item in range(len(items))] for request, items in enumerate(requests)]


def in_rounds(
    items: Sequence[ItemT | RequestError],
    embed: Callable[[Sequence[ItemT | RequestError], Budget], list[Result]],
    cost: PassCost,
    budget: Budget,
) -> list[Result]:
    """Embeds items, and those there seemed to be no time for once more where passes turned out cheaper.

    What a pass costs was measured while other workers started as well, and may be several times too much:
    then most of the time would be left over.
    """
    results: dict[int, Result] = {}
    left = list(range(len(items)))
    while left:
        believed = cost.seconds(1)
        results.update(zip(left, embed([items[i] for i in left], budget), strict=True))
        if not cost.seconds(1) < believed:
            break
        left = [i for i in left if _is_overloaded(results[i])]
    return [results[index] for index in range(len(items))]


def _is_overloaded(result: Result) -> bool:
    return isinstance(result, RequestError) and result.code == overloaded().code


def one_or_many(
    values: Sequence[ValueT],
    embed: Callable[[Sequence[ValueT]], list[Result]],
    check_golden: Callable[[], None],
    budget: Budget,
) -> list[Result]:
    """Embeds values in one forward pass; if that raises, in halves, so that only what is to blame fails.

    Where memory is short, fewer at once may find enough; a value that finds none by itself is to come again.

    Args:
        check_golden: raises where the encoder itself is broken.
    """
    if not values:
        return []
    starved = False
    try:
        return embed(values)
    except Exception as error:
        starved = isinstance(error, MemoryError)
        # PyTorch's messages name shapes and indices, never an input.
        logger.warning("a forward pass of %d items failed: %s", len(values), str(error).partition("\n")[0])
    # Out of the `except` block, which keeps alive what the pass has allocated.
    if len(values) == 1 and starved:
        return [out_of_memory()]
    if len(values) == 1:
        check_golden()
        return [_not_embeddable()]
    if budget.left() <= 0:
        return [overloaded()] * len(values)
    middle = len(values) // 2
    return [
        result
        for half in (values[:middle], values[middle:])
        for result in one_or_many(half, embed, check_golden, budget)
    ]


def as_results(embeddings: FloatArray, usages: Sequence[Usage]) -> list[Result]:
    """Embeddings that are vectors: in half precision a sum may overflow; a NaN would be no JSON."""
    lengths = np.linalg.norm(embeddings, axis=1)  # a sum: not finite where one of its terms is not
    return [
        Embedded(embedding, usage) if 0 < length < np.inf else _not_embeddable()
        for embedding, usage, length in zip(embeddings, usages, lengths, strict=True)
    ]


def _not_embeddable() -> RequestError:
    return RequestError("not_embeddable", "the encoder has no embedding for this item; leave it out", 422)


def attempt(convert: Callable[[ItemT], ValueT], item: ItemT | RequestError) -> ValueT | RequestError:
    """Converts an item, or says what is wrong with it."""
    if isinstance(item, RequestError):
        return item
    try:
        return convert(item)
    except RequestError as error:
        # Anew: this one's traceback, and its cause's, keep alive what was decoded when it was raised, and
        # with it 100 MB for each large picture of the batch that is cut short.
        return RequestError(error.code, error.message, error.status, error.index)
