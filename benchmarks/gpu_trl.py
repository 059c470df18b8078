"""TRL's SFTTrainer with Liger-Kernel on one GPU, on the same random weights, tokens and steps as gpu_train.py.

    python benchmarks/gpu_trl.py --shape 1b

In its best setting: padding-free with flash attention where that is installed, else padded with SDPA and examples of like length
together inside a step; bfloat16, DeepSpeed as in the peers. Out: rows of `train` on this device.
"""

import sys
import tempfile
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import trainer_peer as peer
from datasets import Dataset
from gpu_train import SHAPES
from random_llama import place_alone, random_set, random_weights, settings
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available
from trl import SFTConfig, SFTTrainer

from ift_scale.bench.rows import Gate, Sheet
from ift_scale.progress import say
from ift_scale.train import packing


@click.command()
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), default="1b", show_default=True)
@click.option("--steps", default=8, show_default=True, help="Measured optimizer steps, behind two for warming up.")
@click.option("--batch", default=128, show_default=True, help="Examples of a step.")
@click.option("--micro-batch", default=32, show_default=True)
def main(name: str, steps: int, batch: int, micro_batch: int) -> None:
    """Measure, and store the rows of `train` on this device."""
    place_alone()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        peer.ready(1)
    tokens, shape = random_set(batch * (steps + 2), SHAPES[name]["vocab_size"]), SHAPES[name]
    rows = []
    for number, step in enumerate(packing.step_examples(len(tokens.lengths), batch, 1, 0)):
        for example in sorted(step, key=lambda i: int(tokens.lengths[i])):
            span = slice(tokens.offsets[example], tokens.offsets[example + 1])
            ids, supervised = tokens.ids[span].tolist(), tokens.supervised[span].tolist()
            rows.append(
                {"step": number, "input_ids": ids, "labels": [i if s else -100 for i, s in zip(ids, supervised, strict=True)]}
            )
    flash = on_gpu and is_flash_attn_2_available()
    kept = {"dtype": "bfloat16", "batch": batch, "micro_batch": micro_batch, "padding_free": flash, "liger": on_gpu}
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cuda" if on_gpu else "cpu")
        weights = random_weights(Path(folder), shape, device, torch.bfloat16, 0.02)
        config = peer.zero_2("bfloat16", "torch")
        rate = settings("bfloat16", batch, 8192).learning_rate
        args = SFTConfig(
            **peer.arguments(Path(folder) / "out", config, kept, steps + 2, rate),
            max_length=None,
            padding_free=flash,
            use_liger_kernel=on_gpu,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        attention = "flash_attention_2" if flash else "sdpa"
        shape_config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        model = LlamaForCausalLM.from_pretrained(
            None, config=shape_config, state_dict=weights, dtype=torch.bfloat16, attn_implementation=attention
        )
        clock = peer.Clock(steps + 2)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<pad>")),
            eos_token="</s>",
            pad_token="<pad>",
        )
        data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
        SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock]).train()
    counts = peer.of_steps(rows)[2:]
    speeds = [count["tokens"] / seconds for count, seconds in zip(counts, clock.seconds[2:], strict=True)]
    say(f"{name}: {speeds} tokens a second, losses {clock.losses}")
    if not all(loss == loss and loss < clock.losses[0] * 1.5 for loss in clock.losses):
        raise SystemExit("TRL's losses do not hold together: nothing is stored")
    if on_gpu:
        sheet = Sheet("train", False, torch.cuda.get_device_name())
        gate = Gate(checked="losses are numbers that stay near the first; the tokens are ours")
        about = {"settings": kept | {"attention": attention}, "losses": clock.losses}
        who = "TRL, Liger-Kernel"
        sheet.add(f"{name} bfloat16", "tokens per second", "1/s", speeds, gate, who, "higher", about=about)
        sheet.add(f"{name} bfloat16", "seconds per step", "s", clock.seconds[2:], gate, who)
        sheet.add(f"{name} bfloat16", "peak memory", "B", [torch.cuda.max_memory_allocated()], gate, who)
        say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
