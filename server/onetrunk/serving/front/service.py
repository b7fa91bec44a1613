"""What every endpoint for plain JSON needs: a body, answers, tasks, and errors in one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from starlette.requests import Request
from starlette.responses import Response
from tritonclient.grpc import service_pb2

from onetrunk.client.answer import Answer
from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.api_key import AUTHORIZATION
from onetrunk.protocol.names import ADMIN_HEADER, MULTITASK
from onetrunk.serving.front.body import read_body
from onetrunk.serving.front.collector import Collector
from onetrunk.serving.front.drift.comparison import Drift
from onetrunk.serving.front.errors import ErrorForm, plain_error
from onetrunk.serving.front.gateway import SERVICE, Gateway
from onetrunk.serving.front.observed import observed
from onetrunk.serving.front.observer import Observer
from onetrunk.serving.front.questions import Question, check_windows
from onetrunk.serving.front.sample import Sample
from onetrunk.serving.front.trials import Trials

# The label under which answers are counted that name none of a task's labels.
NONE_OF_THESE = "(none of these)"

Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """The way of a JSON request to its answer."""

    def __init__(self, gateway: Gateway, observer: Observer, trials: Trials, sample: Sample | None = None) -> None:
        """Ask through a gateway.

        Args:
            gateway: The way to Triton.
            observer: Follows the requests.
            trials: The candidates that answer a share of the traffic.
            sample: Keeps some of the texts; None keeps none.
        """
        self._gateway = gateway
        self._trials = trials
        self._sample = sample
        self._observer = observer
        self._collecting: Collector | None = None

    def counted(self, endpoint: Endpoint, errors: ErrorForm = plain_error) -> Endpoint:
        """Return an endpoint that needs an API key if there are any; it is counted, and its failures become answers.

        Args:
            endpoint: Answers a request.
            errors: Puts a failure into the form of the endpoint's protocol.
        """

        async def answer(request: Request) -> Response:
            self._gateway.check_key(request.headers.get(AUTHORIZATION), request.headers.get(ADMIN_HEADER))
            return await endpoint(request)

        async def observed_answer(request: Request) -> Response:
            return await observed(self._observer, request, lambda record: answer(request), errors)

        return observed_answer

    async def body(self, request: Request) -> bytes:
        """Return a request's body, read within the limits. See `read_body` for errors."""
        return await read_body(request, self._gateway.admission, self._gateway.settings.limits)

    @property
    def max_text_bytes(self) -> int:
        """The size of one text in UTF-8."""
        return self._gateway.settings.limits.max_text_bytes

    def holding(self, size: int) -> AbstractContextManager[None]:
        """Count bytes of a request that is answered bit by bit. See `Admission.holding`."""
        return self._gateway.admission.holding(size)

    async def predict(
        self, texts: Sequence[str], pairs: Sequence[str | None], tasks: Sequence[str] | None
    ) -> list[Answer]:
        """Return an answer for each text. See `Collector.predict`.

        Args:
            texts: The texts.
            pairs: The second text of each, or None.
            tasks: The tasks; None asks every task that fits.

        Raises:
            RefusedError: There are too many texts or windows, one is too long, or too many requests wait.
            OneTrunkError: Any error of `AsyncClient.predict`.
            TritonDownError: Triton does not run.
        """
        asked = self._asked(pairs, tasks)
        with self._observer.metrics.asked(asked):
            size = self._gateway.check_texts(texts, pairs)
            collector = self._collector()
            tried = self._trials.ask_texts(self._trials.chosen(asked), texts, pairs)
            live = await self._gateway.infer(size, lambda: collector.predict(texts, pairs, tasks))
            answers = await self._trials.answers(live, tried)
            asked.clear()
            asked.update(Counter(task for answer in answers for task in answer.predictions))
        self._count_labels(answers)
        self._observer.drift.note(live)
        if self._sample is not None:
            self._sample.note(texts, pairs, answers)
        return answers

    def _asked(self, pairs: Sequence[str | None], tasks: Sequence[str] | None) -> dict[str, int]:
        """Return task -> the number of texts that it is asked about, as far as the tasks are known at the moment."""
        known = self._gateway.last_tasks
        of_form = Counter("single" if pair is None else "pair" for pair in pairs)
        names = self._gateway.known_tasks(Question(MULTITASK, (), (), tasks or self._gateway.unnamed_tasks()))
        # Who names none asks those that fit his texts.
        return {name: of_form[known[name].form] for name in names if tasks or of_form[known[name].form]}

    def drifts(self) -> Mapping[str, Drift]:
        """Return task -> how far its answers are from those on the dev data, for the tasks with a reference."""
        return self._observer.drift.drifts(self._gateway.last_tasks)

    def _count_labels(self, answers: Sequence[Answer]) -> None:
        for prediction in (one for answer in answers for one in answer.predictions.values()):
            labels = getattr(prediction, "labels", None)  # of a multilabel task, those that hold
            if labels is None:
                none = getattr(prediction, "none_of_these", False)
                labels = [] if none or prediction.label is None else [prediction.label]
                if not (none or labels):  # an answer without any label, such as a number
                    continue
            for label in labels or [NONE_OF_THESE]:
                self._observer.metrics.answered(prediction.task, label)

    async def catalogue(self) -> Catalogue:
        """Return the tasks and limits of the server."""
        return await self._gateway.catalogue()

    async def is_ready(self) -> bool:
        """Return whether Triton says that it can answer.

        Raises:
            TritonDownError: Triton does not run.
        """
        request = service_pb2.ModelReadyRequest(name=MULTITASK).SerializeToString()
        answer = await self._gateway.call(f"{SERVICE}ModelReady", request)
        return bool(service_pb2.ModelReadyResponse.FromString(answer).ready)

    async def check_tasks(self, tasks: Sequence[str] | None) -> None:
        """Check that these tasks are served.

        Raises:
            UnknownTask: One is not.
        """
        (await self.catalogue()).named(tasks or ())

    def _collector(self) -> Collector:
        """Return what collects texts for the Triton that runs now."""
        client = self._gateway.client()
        if self._collecting is None or self._collecting.client is not client:
            self._collecting = Collector(client, self._holding_windows)
        return self._collecting

    def _holding_windows(self, windows: int, size: int) -> AbstractContextManager[None]:
        """Count the windows of a request's long texts as if they were texts that its client had sent."""
        check_windows(windows, size, self._gateway.settings.limits)
        return self.holding(size)
