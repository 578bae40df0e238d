# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Text comes out in whole characters, as soon as it can, and ends before a stop string."""

from collections.abc import Sequence
from pathlib import Path
import sys
import threading
import time
from typing import Any

from hypothesis import given, settings, strategies
import pytest
from tokenizers import decoders, models, Tokenizer
from transformers import AutoTokenizer

from timebill_ros.engine.errors import EngineError, ModelError, PromptRefused
from timebill_ros.engine.text import Detokenizer, ResponseText, StopStrings, TextCodec
from timebill_ros.query import Turn

TEXTS = ['Hello, world!', ' two  spaces\n\nand\ttabs ', 'Grüße an 世界', '👩‍👩‍👧 family, 🇫🇷 flag, 🤖',
         'عربى हिन्दी', 'e\u0301 combined', '<|im_start|> written out', '']


@pytest.fixture(scope='module')
def codec(embedded_directory: Path) -> TextCodec:
    return TextCodec(embedded_directory)


def streamed(decode: Any, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@pytest.mark.parametrize('text', TEXTS)
def test_a_stream_is_the_text_and_never_half_a_character(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    pieces = streamed(codec.decode, ids)
    assert ''.join(pieces) == codec.decode(ids)
    assert '\ufffd' not in ''.join(pieces)


@settings(max_examples=60, deadline=None)
@given(text=strategies.text(max_size=40))
def test_any_text_comes_out_as_it_went_in(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    shown, whole = ''.join(streamed(codec.decode, ids)), codec.decode(ids)
    if '\ufffd' in whole:   # the tokenizer lacks bytes of it: how many are lost is told differently
        shown, whole = shown.replace('\ufffd', ''), whole.replace('\ufffd', '')
    assert shown == whole


def test_a_response_that_is_cut_within_a_character_ends_before_it(codec: TextCodec) -> None:
    ids = codec.encode('ok 世')
    assert codec.decode(ids[:-1]).endswith('\ufffd'), 'the character has several tokens'
    assert ''.join(streamed(codec.decode, ids[:-1])).rstrip() == 'ok'


def test_a_word_is_shown_with_the_token_that_completes_it(codec: TextCodec) -> None:
    ids = codec.encode('The capital of France')
    assert streamed(codec.decode, ids) == ['The', ' capital', ' of', ' France', '']


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back(codec: TextCodec) -> None:
    broken = codec.encode('世')[:1] * 20
    pieces = streamed(codec.decode, [*codec.encode('a'), *broken, *codec.encode(' end of it')])
    text = ''.join(pieces)
    assert text.startswith('a') and text.endswith('end of it') and '\ufffd' in text


def test_decoding_takes_the_same_time_however_long_the_response_is() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return ''.join(map(chr, ids))

    assert ''.join(streamed(decode, [97] * 3000)) == 'a' * 3000
    assert longest <= 16


def test_a_sentencepiece_tokenizer_keeps_its_spaces() -> None:
    vocabulary = {'▁The': 0, '▁cat': 1, '▁': 2, 's': 3, '<0xE2>': 4, '<0x82>': 5, '<0xAC>': 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(' ', 1, 0)])
    ids = [0, 1, 3, 2, 4, 5, 6, 1]
    assert streamed(tokenizer.decode, ids) == [
        'The', ' cat', 's', ' ', '', '', '€', ' cat', '']
    assert ''.join(streamed(tokenizer.decode, ids)) == tokenizer.decode(ids)


# --- stop strings

def pushed(stop: list[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    stops, out = StopStrings(stop), []
    for piece in pieces:
        out.append(stops.push(piece))
        if stops.found:
            return out, True
    return [*out, stops.finish()], False


def test_a_stop_string_is_found_across_pieces_and_not_shown() -> None:
    assert pushed(['END'], ['one E', 'N', 'D two']) == (['one ', '', ''], True)


def test_what_might_begin_a_stop_string_waits_and_comes_when_it_does_not() -> None:
    assert pushed(['\n\nQ:'], ['a\n', '\n', 'b', '\n']) == (['a', '', '\n\nb', '', '\n'], False)


def test_a_stop_string_may_overlap_its_own_beginning() -> None:
    assert pushed(['aab'], ['a', 'a', 'a', 'b']) == (['', '', 'a', ''], True)


def test_the_stop_string_that_is_whole_first_counts() -> None:
    assert pushed(['bcdef', 'cd'], ['abcdefg']) == (['ab'], True)
    assert pushed(['cd', 'bcd'], ['abcdefg']) == (['a'], True)


def test_without_stop_strings_nothing_waits() -> None:
    assert pushed([], ['a', 'b']) == (['a', 'b', ''], False)


@settings(max_examples=200, deadline=None)
@given(strategies.data())
def test_pieces_do_not_matter(data: Any) -> None:
    text = data.draw(strategies.text('abc', max_size=30))
    stop = data.draw(strategies.lists(
        strategies.text('abc', min_size=1, max_size=4), min_size=1, max_size=3))
    cuts = sorted(data.draw(strategies.lists(strategies.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    out, found = pushed(stop, pieces)
    ends = [text.find(each) + len(each) for each in stop if each in text]
    assert found == bool(ends)
    shown = ''.join(out)
    if ends:
        end = min(ends)
        longest = max(len(each) for each in stop if text[:end].endswith(each))
        assert shown == text[:end - longest]
    else:
        assert shown == text
    for index in range(len(out) - 1):       # nothing was shown that a stop string then took back
        assert text.startswith(''.join(out[:index + 1]))


def test_a_response_ends_before_its_stop_string(codec: TextCodec) -> None:
    ids = codec.encode('One. Two. Three. Four.')
    response = ResponseText(codec, [' Three', 'never'])
    shown = []
    for token in ids:
        shown.append(response.push(token))
        if response.stopped:
            break
    assert response.stopped and response.finish() == ''
    assert ''.join(shown) == response.text == 'One. Two.'


def test_what_waits_is_shown_at_the_end_of_a_response(codec: TextCodec) -> None:
    response = ResponseText(codec, ['two!'])
    shown = [response.push(token) for token in codec.encode('one two')]
    rest = response.finish()
    assert rest == 'two' and ''.join(shown) + rest == response.text == 'one two'
    assert not response.stopped and response.finish() == ''


# --- prompts

def test_a_prompt_has_the_ids_of_the_models_own_template(
        codec: TextCodec, embedded_directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_directory)
    turns = [Turn('system', 'Be brief.'), Turn('user', 'Grüße? 🤖'), Turn('assistant', 'Ja.'),
             Turn('user', 'Why?')]
    expected = tokenizer.apply_chat_template(
        [{'role': turn.role, 'content': turn.content} for turn in turns],
        add_generation_prompt=True, return_dict=False)
    assert codec.encode_chat(turns) == expected
    assert len(codec.encode_chat([Turn('user', 'What is the capital of France?')])) == 37


def test_of_a_prompt_far_beyond_the_limit_the_beginning_is_enough(codec: TextCodec) -> None:
    limit = 70
    for text in ('word ' * 100_000, 'a' * 500_000, '🤖' * 100_000):
        ids = codec.encode_chat([Turn('user', text)], limit)
        assert limit < len(ids) <= 8 * limit * 4        # a character has at most four bytes
    # Long for its tokens, and a little beyond: nothing is left out.
    for turn in (Turn('user', ' ' * 5000 + 'x'), Turn('user', 'word ' * 45)):
        assert codec.encode_chat([turn], limit) == codec.encode_chat([turn])


def test_a_model_without_a_template_gets_a_plain_conversation(
        make_checkpoint: Any, tmp_path: Path) -> None:
    from engine.conftest import byte_tokenizer
    byte_tokenizer('').save_pretrained(tmp_path)
    codec = TextCodec(tmp_path)
    assert not codec.has_chat_template
    ids = codec.encode_chat([Turn('system', 'Be brief.'), Turn('user', 'Hi')])
    assert codec.decode(ids) == 'System: Be brief.\n\nUser: Hi\n\nAssistant:'


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    from engine.conftest import byte_tokenizer
    byte_tokenizer(
        "{% if messages[0]['role'] == 'system' or 'nonsense' in messages[0]['content'] %}"
        "{{ raise_exception('not this, please') }}{% endif %}").save_pretrained(tmp_path)
    codec = TextCodec(tmp_path)
    with pytest.raises(PromptRefused, match=r'^system_prompt or .*: not this, please$'):
        codec.encode_chat([Turn('system', 'x'), Turn('user', 'y')])
    with pytest.raises(PromptRefused, match=r'^prompt or messages: .*: not this, please$'):
        codec.encode_chat([Turn('user', 'nonsense')])


def test_text_that_is_no_unicode_is_refused(codec: TextCodec) -> None:
    with pytest.raises(EngineError, match='tokens'):
        codec.encode_chat([Turn('user', 'half a character: \ud83e')])


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match='tokenizer'):
        TextCodec(tmp_path)


def test_one_thread_may_encode_while_another_decodes(codec: TextCodec) -> None:
    ids, errors = codec.encode('Some text to decode again and again. ' * 20), []
    done = threading.Event()

    def encode() -> None:
        try:
            while not done.is_set():
                codec.encode_chat([Turn('user', 'A question? ' * 50)])
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    for _ in range(200):
        codec.decode(ids)
    done.set()
    thread.join()
    assert not errors


def test_others_go_on_while_a_prompt_is_encoded(codec: TextCodec) -> None:
    done, turns = threading.Event(), []
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(60.0)     # nobody is made to give Python's lock up

    def work() -> None:
        while not done.is_set():
            turns.append(None)
            time.sleep(0.0)         # gives it up

    other = threading.Thread(target=work)
    other.start()
    try:
        before = len(turns)
        codec.encode('The robot went to the kitchen and saw a cup. ' * 2_000)
        during = len(turns) - before
    finally:
        done.set()
        sys.setswitchinterval(interval_s)
    other.join()
    assert during > 1
