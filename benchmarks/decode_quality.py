# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Tokens and likelihoods of the CUDA tiers with a real checkpoint, by default the embedded model.

    python3 benchmarks/decode_quality.py --out tables [--model DIRECTORY] [--prompts 50]
    python3 benchmarks/decode_quality.py --out tables --weights-only

Steps: every step of the CUDA kernels, in every tier and for one to four sequences, against plain
tensor code that takes the same step from the same cache with the weights that the tier's integers
stand for: the logits, and the tapped layer's output, which the length predictor reads.
Parity: greedy answers of the bf16 tier against those of transformers' generate in bf16 (SDPA), up
to the first difference; and, token by token, against what transformers finds likeliest when it
reads our answer in one pass. Where the two differ, how far apart transformers' own logits of the
two tokens lie, in steps of bf16 at the largest logit. Quality: every tier reads the same
text token by token, which no tier has seen (weights are rounded without looking at any text).
With --weights-only transformers reads it in float32 with each tier's weights: what rounding them
costs, without a GPU and without the rounding of activations; int4 also with the other group size.
"""

import argparse
import json
from math import exp, floor, log2
from pathlib import Path
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from timebill_ros.engine.config import read_config
from timebill_ros.engine.cuda.quantize import dequantize, quantize
from timebill_ros.engine.cuda.tiers import BITS, HEAD_BITS, int4_group, Tier
from timebill_ros.engine.cuda.variants import FINE_GROUP, GROUP
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import load_model
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.source import find_model
from timebill_ros.engine.weights import LayerWeights, Weights
from timebill_ros.executor.messages import Load
from timebill_ros.paths import cache_dir
from timebill_ros.query import Sampling, Turn

CONTEXT_TOKENS, READ_TOKENS = 256, 128
CPU_WINDOWS, GPU_WINDOWS = 10, 40
CHECKED_STEPS, CHECKED_WIDTHS = 40, (1, 2, 3, 4)


def paragraphs() -> list[str]:
    """Return the paragraphs of this repository's documentation, longest first."""
    root = Path(__file__).resolve().parent.parent
    texts = [path.read_text(encoding='utf-8') for path in
             [root / 'README.md', *sorted((root / 'docs').glob('*.md'))]]
    found = [part.strip() for text in texts for part in text.split('\n\n')]
    return sorted((p for p in found if p[:1].isalpha() and len(p) > 200), key=len, reverse=True)


def prefilled(engine: Engine, ids: list[int], room: int, sampling: Sampling) -> Any:
    sequence = engine.open_sequence(ids, len(ids) + room, sampling)
    while not engine.prefill_chunk(sequence):
        pass
    engine.next_token(sequence)
    return sequence


def greedy(engine: Engine, ids: list[int], cap: int) -> list[int]:
    sequence = prefilled(engine, ids, cap, Sampling(repetition_penalty=1.0))
    try:
        while len(sequence.tokens) < cap and sequence.tokens[-1] not in engine.end_ids:
            engine.decode_step([sequence])
        return list(sequence.tokens)
    finally:
        engine.close(sequence)


def dense(tier: Tier, weights: Weights) -> Weights:
    """Return plain weights with the values that a tier's matrices stand for."""
    names = ('qkv', 'o', 'gate_up', 'down')
    layers = [
        LayerWeights(**{**vars(layer), **{name: dequantize(getattr(made, name)) for name in names}})
        for made, layer in zip(tier.layers, weights.layers)]
    return Weights(weights.embed, layers, weights.final_norm, dequantize(tier.head))


@torch.inference_mode()
def check_steps(engine: Engine, weights: Weights, config: Any, tap_layer: int,
                prompts: list[str]) -> list[dict[str, Any]]:
    """Compare each step of the kernels with plain tensor code on the same cache."""
    cache, rows = engine._cache, []
    rope = rope_table(config, engine.info.max_context, engine.device)
    for tier in engine.info.tiers:
        plain = dense(engine._steps._runner._launches._tiers[tier], weights)
        decoder = Decoder(config, plain, rope, cache, tap_layer)
        for width in CHECKED_WIDTHS:
            sequences = [prefilled(engine, engine.tokenize([Turn('user', text)]), 2 * CHECKED_STEPS,
                                   Sampling(repetition_penalty=1.0)) for text in prompts[:width]]
            slots, worst, broken = [s.slot for s in sequences], {'logits': 0.0, 'tap': 0.0}, 0
            for _ in range(CHECKED_STEPS):
                ids = torch.tensor([s.tokens[-1] for s in sequences], device=engine.device)
                engine.decode_step(sequences, tier)
                ours = {'logits': torch.stack([engine.newest_logits(s) for s in sequences]),
                        'tap': torch.stack([engine.newest_state(s) for s in sequences])}
                for slot in slots:
                    cache.length[slot] -= 1
                    cache.position[slot] -= 1
                theirs = {'logits': decoder.step(slots, ids).float(), 'tap': decoder.tap.float()}
                for name, own in ours.items():
                    broken += int((~own.isfinite()).sum())
                    error = (own - theirs[name]).norm(dim=1) / theirs[name].norm(dim=1)
                    worst[name] = max(worst[name], float(error.max()))
            for sequence in sequences:
                engine.close(sequence)
            rows.append({'tier': tier, 'width': width, 'steps': CHECKED_STEPS,
                         'not_finite': broken,
                         **{name: round(error, 5) for name, error in worst.items()}})
            print(rows[-1], flush=True)
    return rows


def gap_in_steps(logits: torch.Tensor, better: int, worse: int) -> float:
    """Return how far two tokens lie apart, in steps of bf16 at the largest logit."""
    step = 2.0 ** (floor(log2(float(logits.abs().max()))) - 7)
    return round(float(logits[better] - logits[worse]) / step, 2)


@torch.inference_mode()
def parity(engine: Engine, oracle: Any, prompts: list[str], cap: int) -> dict[str, Any]:
    """Compare with transformers' greedy answers, and with what it finds likeliest behind ours."""
    same, first_gaps, compared, gaps = 0, [], 0, []
    for text in prompts:
        ids = engine.tokenize([Turn('user', 'Say it in one sentence: ' + text)])
        actual = greedy(engine, ids, cap)
        prompt = torch.tensor([ids], device=oracle.device)
        theirs = oracle.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=cap, do_sample=False,
            repetition_penalty=1.0, output_logits=True, return_dict_in_generate=True)
        expected = theirs.sequences[0, len(ids):].tolist()
        at = next((i for i, pair in enumerate(zip(actual, expected)) if len(set(pair)) > 1), None)
        same += at is None
        if at is not None:
            first_gaps.append(gap_in_steps(theirs.logits[at][0].float(), expected[at], actual[at]))
        tokens = torch.tensor([ids + actual], device=oracle.device)
        logits = oracle(tokens).logits[0, len(ids) - 1:-1].float()
        compared += len(actual)
        gaps += [gap_in_steps(row, best, own)
                 for row, best, own in zip(logits, logits.argmax(-1).tolist(), actual)
                 if best != own]
    return {'against': 'its greedy answers', 'prompts': len(prompts), 'identical': same,
            'gaps_at_first_difference': sorted(first_gaps), 'tokens': compared,
            'tokens_differing': len(gaps), 'gaps_in_bf16_steps': sorted(gaps)}


def windows(engine: Engine, texts: list[str]) -> list[list[int]]:
    ids = [token for text in texts for token in engine.tokenize([Turn('user', text)])[8:-6]]
    size = CONTEXT_TOKENS + READ_TOKENS
    return [ids[i:i + size] for i in range(0, len(ids) - size + 1, size)]


def quality(engine: Engine, texts: list[str]) -> list[dict[str, Any]]:
    """Read the last tokens of every window with every tier, from the same prefilled cache."""
    sums = {tier: [0.0, 0.0, 0.0, 0] for tier in engine.info.tiers}
    for ids in windows(engine, texts)[:GPU_WINDOWS]:
        sampling = Sampling(repetition_penalty=1.0)
        sequence = prefilled(engine, ids[:CONTEXT_TOKENS], READ_TOKENS + 2, sampling)
        reference = None
        for tier in engine.info.tiers:
            engine.rewind(sequence)
            rows = []
            for token in ids[CONTEXT_TOKENS:-1]:
                engine.force(sequence, token)
                engine.decode_step([sequence], tier)
                rows.append(engine.newest_logits(sequence).clone())
            said = torch.log_softmax(torch.stack(rows), -1)
            reference = said if reference is None else reference
            next_ids = torch.tensor(ids[CONTEXT_TOKENS + 1:], device=said.device)
            total = sums[tier]
            total[0] -= float(said.gather(1, next_ids[:, None]).sum())
            total[1] += float((said.argmax(-1) == reference.argmax(-1)).sum())
            total[2] += float((reference.exp() * (reference - said)).sum())
            total[3] += len(rows)
        engine.close(sequence)
    return [{'tier': tier, 'tokens': n, 'perplexity': round(exp(nll / n), 4),
             'agrees_with_first': round(agree / n, 4), 'divergence_nats': round(divergence / n, 5)}
            for tier, (nll, agree, divergence, n) in sums.items()]


def weights_quality(directory: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Read the last tokens of every window with transformers and the weights of each tier."""
    encode = AutoTokenizer.from_pretrained(directory).encode
    ids = [token for text in texts for token in encode(text)]
    size = CONTEXT_TOKENS + READ_TOKENS
    parts = torch.tensor(ids[:CPU_WINDOWS * size]).view(-1, size)
    references, table = [], []
    served = int4_group(read_config(directory))
    other = GROUP if served == FINE_GROUP else FINE_GROUP
    for name_of_row, tier, group in (
            ('bf16', 'bf16', GROUP), ('int8', 'int8', GROUP), ('int4', 'int4', served),
            (f'int4, groups of {other} instead', 'int4', other)):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                bits = (HEAD_BITS if name == 'lm_head' else BITS)[tier]
                module.weight = torch.nn.Parameter(
                    dequantize(quantize(module.weight.data, bits, group)))
        model.float()
        nll = agree = divergence = 0.0
        for i, part in enumerate(parts):
            with torch.inference_mode():
                said = torch.log_softmax(model(part[None]).logits[0, CONTEXT_TOKENS:-1], -1)
            if tier == 'bf16':
                references.append(said)
            nll -= float(said.gather(1, part[CONTEXT_TOKENS + 1:, None]).sum())
            agree += float((said.argmax(-1) == references[i].argmax(-1)).sum())
            divergence += float((references[i].exp() * (references[i] - said)).sum())
        n = len(parts) * (READ_TOKENS - 1)
        table.append({'tier': name_of_row, 'tokens': n, 'perplexity': round(exp(nll / n), 4),
                      'agrees_with_first': round(agree / n, 4),
                      'divergence_nats': round(divergence / n, 5)})
        print(table[-1], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--model', default='embedded')
    parser.add_argument('--prompts', type=int, default=50)
    parser.add_argument('--tokens', type=int, default=48)
    parser.add_argument('--weights-only', action='store_true')
    parser.add_argument('--parts', nargs='+', default=['checked', 'parity', 'quality'])
    arguments = parser.parse_args()
    if arguments.weights_only:
        source = find_model(arguments.model, cache_dir('') / 'models', False,
                            lambda what, fraction: None)
        save({'device': 'CPU', 'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'),
              'model': source.name, 'quality': weights_quality(source.directory, paragraphs())},
             arguments.out, 'weights-quality')
        return
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    load = Load(arguments.model, device=device, tiers=['bf16', 'int8', 'int4'], max_batch=4,
                max_context=4096, tap_layer=18, predictor='')
    model = load_model(load, lambda what, fraction: None)
    engine = Engine(model, load)
    print(engine.info.tiers, engine.notes, flush=True)
    source = find_model(load.model, cache_dir(load.cache_dir) / 'models', False,
                        lambda what, fraction: None)
    oracle = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.bfloat16).to(device)
    texts = paragraphs()
    prompts = [text[:700] for text in texts[:arguments.prompts]]
    head = {'device': engine.info.device, 'torch': torch.__version__,
            'date': time.strftime('%Y-%m-%d'), 'model': source.name}
    for part, measure in {
            'parity': lambda: parity(engine, oracle, prompts, arguments.tokens),
            'quality': lambda: quality(engine, texts),
            'checked': lambda: check_steps(
                engine, model.weights, model.config, load.tap_layer, prompts)}.items():
        if part in arguments.parts and (part != 'checked' or device == 'cuda'):
            kind = 'kernel-quality' if part == 'quality' else part
            save({**head, part: measure()}, arguments.out, kind)


def save(result: dict[str, Any], out: Path, kind: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name = f'{kind}-{result["model"].lower().replace("/", "-")}.json'
    (out / name).write_text(json.dumps(result, indent=1))
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
    main()
