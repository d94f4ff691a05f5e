"""Questions with their answers in tokens, by the template of a prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError, brief, did_you_mean
from jaxunlearn.data.texts import to_texts
from jaxunlearn.language.tokenizer import Tokenizer


class Template(NamedTuple):
    """Form of a prompt with its answer.

    Attributes:
      text: with ``{question}`` and, at its end, ``{answer}``.
      end: the token behind the answer; ``""``: the tokenizer's end.
    """

    text: str
    end: str = ""


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
TEMPLATES: dict[str, Template] = {
    "plain": Template("Question: {question}\nAnswer: {answer}"),
    "llama2": Template("[INST] {question} [/INST] {answer}"),
    "llama3": Template(
        f"{_HEADER.format('user')}{{question}}<|eot_id|>{_HEADER.format('assistant')}{{answer}}",
        "<|eot_id|>",
    ),
    "mistral": Template("[INST] {question} [/INST] {answer}"),
    "qwen": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}"
        "<|im_end|>\n<|im_start|>assistant\n{answer}",
        "<|im_end|>",
    ),
    "vicuna": Template("USER: {question} ASSISTANT: {answer}"),
}
"""Templates by name; the chat templates are those of the models without a system's message,
but for ``qwen``, which always has one. The token before every text is the tokenizer's."""


def find_template(template: str | Template) -> Template:
    """Returns a template by its name, or one of one's own.

    Args:
      template: a name of :data:`TEMPLATES`, or a text with ``{question}`` and, at its end,
        ``{answer}``; where that is left out, the answer stands there behind a space.

    Raises:
      DataError: neither of them.
    """
    if isinstance(template, str):
        if template in TEMPLATES:
            return TEMPLATES[template]
        template = Template(template)
    text = template.text
    if "{answer}" not in text:
        text += "{answer}" if text[-1:].isspace() else " {answer}"
    before = text.removesuffix("{answer}")
    if before.count("{question}") != 1 or "{answer}" in before:
        raise DataError(
            f"template: expected one of {', '.join(TEMPLATES)}, or a text with {{question}} and, "
            f"at its end, {{answer}}, got {brief(template.text)}"
            f"{did_you_mean(template.text, TEMPLATES)}"
        )
    return template._replace(text=text)


def stop_token(tokenizer: Tokenizer, template: str | Template = "plain") -> int:
    """Returns the token that ends an answer in a template.

    Raises:
      DataError: the tokenizer does not have it.
    """
    end = find_template(template).end
    return tokenizer.number(end) if end else tokenizer.eos


def encode_prompts(
    tokenizer: Tokenizer, questions: Sequence[str], template: str | Template = "plain"
) -> list[list[int]]:
    """Returns the tokens of prompts, each one that of :func:`encode_pairs` before the answer.

    Raises:
      DataError: an unknown template, or one whose special tokens the tokenizer does not have.
    """
    prompt, _ = _parts(tokenizer, template)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    # not format, which would read braces in a question
    return [begin + tokenizer.encode(prompt.replace("{question}", one)) for one in questions]


def encode_pairs(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    answers: Sequence[Any],
    template: str | Template = "plain",
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Encodes questions with their answers, right-padded.

    Prompt and answer are encoded apart, so that the tokens of a prompt are those that generation
    starts with; a space between them goes with the answer.

    Args:
      questions: ``N`` texts.
      answers: ``N`` texts, or ``N`` lists of texts, ``P`` at most; an empty text is no answer.
      template: see :func:`find_template`.
      length: ``T``; default: that of the longest pair.

    Returns:
      ``"tokens"`` ``int32 [N, T]`` or ``[N, P, T]``; ``"mask"`` bool, true where a token is real;
      ``"answer"`` bool, true on the answer and the token that ends it, but never at the first
      place. Where there is no answer the prompt stands alone, and ``"answer"`` is false.

    Raises:
      DataError: a pair longer than ``length``, or see :func:`encode_prompts`.
    """
    if len(questions) != len(answers):
        raise DataError(f"answers: expected {len(questions)}, one a question, got {len(answers)}")
    nested = any(not isinstance(one, str) for one in answers)
    width = max([1, *map(len, answers)]) if nested else 1
    lists = [[*one, *[""] * (width - len(one))] if nested else [one] for one in answers]
    _, gap = _parts(tokenizer, template)
    end, rows = stop_token(tokenizer, template), []
    prompts = encode_prompts(tokenizer, questions, template)
    for prompt, own in zip(prompts, lists, strict=True):
        for answer in own:
            behind = [*tokenizer.encode_after(gap + answer), end] if answer else []
            rows.append((prompt, behind))
    lengths = [len(prompt) + len(behind) for prompt, behind in rows]
    longest = max([1, *lengths])
    if length is not None and longest > length:
        at = int(np.argmax(lengths))
        over = sum(one > length for one in lengths)
        raise DataError(
            f"pairs: expected at most {length} tokens, the context, got {longest} in pair "
            f"{at // width}, {brief(questions[at // width])} ({over} such texts)"
        )
    shape = (len(rows), longest if length is None else length)
    tokens = np.full(shape, tokenizer.pad, np.int32)
    mask, answer_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (prompt, behind) in enumerate(rows):
        tokens[row, : lengths[row]] = [*prompt, *behind]
        mask[row, : lengths[row]] = True
        answer_mask[row, max(len(prompt), 1) : lengths[row]] = True
    found = {"tokens": tokens, "mask": mask, "answer": answer_mask}
    if nested:
        return {name: one.reshape(-1, width, shape[1]) for name, one in found.items()}
    return found


def decode_answers(tokenizer: Tokenizer, written: np.ndarray, stop: int) -> list[str]:
    """Returns the texts of answers that a model wrote, each up to its end.

    Numbers that are no token stand for no text: models have some where their embedding is filled
    up to a round number.

    Args:
      written: ``int [N, T]``, as :func:`~jaxunlearn.language.generation.generate` returns them.
      stop: the token that ends an answer.
    """
    ended = np.cumsum(written == stop, axis=1) > 0
    kept = ~ended & (written < tokenizer.size)
    return [tokenizer.decode(row[own]) for row, own in zip(written, kept, strict=True)]


_ANSWERS = {"": "answer", "paraphrase": "paraphrased_answer", "perturbed": "perturbed_answer"}


def encode_examples(
    tokenizer: Tokenizer,
    splits: Sequence[Mapping[str, np.ndarray]],
    template: str | Template = "plain",
    length: int | None = None,
) -> list[dict[str, Any]]:
    """Encodes the texts of data sets, with their variants, at one length for all.

    Args:
      splits: of each split the ``x`` of :func:`jaxunlearn.data.texts.pairs_dataset`.
      template, length: see :func:`encode_pairs`.

    Returns:
      Of each split ``"tokens"``, ``"mask"``, ``"answer"`` ``[N, T]``, and ``"variants"``: the same
      of ``"paraphrase"``, ``[N, T]``, and of ``"perturbed"``, ``[N, P, T]``, where the texts have
      them. All stand behind the question itself, as TOFU judges them; ``"answer"`` is false
      throughout where an example has no such answer.

    Raises:
      DataError: see :func:`encode_pairs`.
    """
    found: list[dict[str, Any]] = []
    for x in splits:
        texts = {name: to_texts(leaf) for name, leaf in x.items()}
        found.append(
            {
                name: encode_pairs(tokenizer, texts["question"], texts[field], template, length)
                for name, field in _ANSWERS.items()
                if field in texts
            }
        )
    widest = max(one["tokens"].shape[-1] for parts in found for one in parts.values())
    padded = [
        {key: _widened(one, widest, tokenizer.pad) for key, one in parts.items()} for parts in found
    ]
    return [{**parts.pop(""), "variants": parts} for parts in padded]


def _widened(texts: Mapping[str, np.ndarray], length: int, pad: int) -> dict[str, np.ndarray]:
    """Fills rows up to ``length``."""
    return {
        name: np.pad(
            one,
            [(0, 0)] * (one.ndim - 1) + [(0, length - one.shape[-1])],
            constant_values=pad if name == "tokens" else False,
        )
        for name, one in texts.items()
    }


def _parts(tokenizer: Tokenizer, template: str | Template) -> tuple[str, str]:
    """Returns a prompt with ``{question}`` in it, and the space between prompt and answer."""
    whole = find_template(template)
    for special in re.findall(r"<\|[^|<>]+\|>", whole.text):
        tokenizer.number(special)
    before = whole.text.removesuffix("{answer}")
    prompt = before.rstrip(" ")
    return prompt, before[len(prompt) :]
