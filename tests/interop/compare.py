"""Compares this program with transformers, live.

    python compare.py WATTLE MODELS RUN

WATTLE is the program, MODELS what make_models.py has made, RUN a finished training run. Ends with status 1 at the first
disagreement.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOGITS_BOUND = 1e-4
NEW_TOKENS = 64


def run(wattle, *arguments):
    done = subprocess.run([wattle, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr}")
    return done.stdout


def expect(holds, words):
    if not holds:
        sys.exit(f"disagreement: {words}")


def logits_here(wattle, model, ids, scratch):
    output = scratch / "logits.safetensors"
    run(wattle, "logits", model, "--ids", ",".join(map(str, ids)), "--output", output)
    return load_file(output)["logits"]


def greedy_here(wattle, model, ids):
    arguments = ["--max-tokens", NEW_TOKENS, "--temperature", 0, "--json"]
    out = run(wattle, "generate", model, "--ids", ",".join(map(str, ids)), *arguments)
    return json.loads(out)["tokens"]


def greedy_there(model, ids):
    """Without the library's generation settings: the likeliest token, and never an end."""
    ids = list(ids)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + NEW_TOKENS:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        expect(not info[kind], f"{directory}: {kind} {info[kind]}")
    return model.eval()


def compare(wattle, ours, theirs, ids, scratch):
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor([ids])).logits[0]
    worst = (logits_here(wattle, ours, ids, scratch) - wanted).abs().max().item()
    expect(worst < LOGITS_BOUND, f"{ours}: logits differ by {worst:.1e}")
    here, there = greedy_here(wattle, ours, ids[:8]), greedy_there(theirs, ids[:8])
    expect(here == there, f"{ours}: greedy tokens {here} here, {there} there")
    print(f"{Path(ours).name}: logits within {worst:.1e}, {NEW_TOKENS} greedy tokens alike")


def compare_scalars(run_directory):
    events = EventAccumulator(str(run_directory), size_guidance=dict(scalars=0))
    events.Reload()
    steps = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    scalars = {event.step: event.value for event in events.Scalars("loss/cross_entropy")}
    expect(len(scalars) == len(steps), f"{len(scalars)} steps in TensorBoard, {len(steps)} in metrics.jsonl")
    for step in steps:
        expect(abs(scalars[step["step"]] - step["ce_loss"]) < 1e-5, f"step {step['step']} in TensorBoard")
    print(f"TensorBoard reads {len(scalars)} steps with {len(events.Tags()['scalars'])} scalars")


def main():
    wattle, models, run_directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for directory in sorted(path for path in models.iterdir() if path.is_dir()):
            theirs = load(directory)
            ids = torch.randint(theirs.config.vocab_size, (100,)).tolist()
            compare(wattle, directory, theirs, ids, scratch)
            written = scratch / directory.name
            run(wattle, "export", directory, "--output", written)
            compare(wattle, written, load(written), ids, scratch)
        exported = scratch / "trained"
        run(wattle, "export", run_directory, "--output", exported)
        theirs = load(exported)
        tokenizer = AutoTokenizer.from_pretrained(exported)
        text = "fn main() {\n    let x = 1;\n"
        ids = tokenizer(text)["input_ids"]
        expect(tokenizer.decode(ids) == text, "the exported tokenizer loses text")
        compare(wattle, exported, theirs, [tokenizer.eos_token_id, *ids], scratch)
    compare_scalars(run_directory)


if __name__ == "__main__":
    main()
