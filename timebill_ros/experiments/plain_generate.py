# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The loop that many write first: ``generate`` of transformers with a time limit.

Runs in the engine's interpreter, started by ``PlainLoop`` with the model, the directory of
converted models and the device as arguments. Reads one JSON object per line (``prompt``,
``max_time_s``, ``max_new_tokens``, ``repetition_penalty``), writes one per line (``text``,
``ended``, ``n_prompt``, ``n_generated``); its first line says that the model is loaded.
"""

import json
from pathlib import Path
import sys
from typing import Any

from timebill_ros.engine.threads import prepare_environment


def main(model_name: str, models_dir: str, device: str) -> None:
    """Answer until standard input ends."""
    prepare_environment()       # the same waiting threads as ours has; the defaults are far slower
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from timebill_ros.engine.source import find_model

    directory = find_model(model_name, Path(models_dir), False, lambda what, share: None).directory
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.float32 if device == 'cpu' else torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
    model = model.to(device).eval()
    print(json.dumps({'device': device, 'dtype': str(dtype)}), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(model, tokenizer, json.loads(line))), flush=True)


def answer(model: Any, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Generate within the limit, greedily, with the repetition penalty that was asked for."""
    inputs = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': asked['prompt']}], add_generation_prompt=True,
        return_tensors='pt', return_dict=True).to(model.device)
    n_prompt = inputs['input_ids'].shape[1]
    output = model.generate(
        **inputs, max_time=asked['max_time_s'], max_new_tokens=asked['max_new_tokens'],
        do_sample=False, repetition_penalty=asked['repetition_penalty'])
    tokens = output[0, n_prompt:].tolist()
    ends = model.generation_config.eos_token_id
    ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
    return {'text': tokenizer.decode(tokens, skip_special_tokens=True),
            'ended': ended or len(tokens) == asked['max_new_tokens'],
            'n_prompt': n_prompt, 'n_generated': len(tokens)}


if __name__ == '__main__':
    main(*sys.argv[1:])
