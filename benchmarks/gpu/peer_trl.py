"""TRL's SFTTrainer with Liger-Kernel on one GPU, on the same random weights, tokens and steps as train.py.

    python -m benchmarks.gpu.peer_trl --shape 1b        (one GPU)
    python -m benchmarks.gpu.peer_trl --tiny            (anywhere; shows that it runs)

In its best setting: padding-free with flash attention if that is installed, else padded with SDPA and examples of like length
together inside a step; bfloat16, torch's fused AdamW, DeepSpeed as in the peers. TRL decides by itself which of Liger's kernels it
uses (1.16 has its own loss), so the rows are named by what ran. Out: rows of `train` on this device.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu.shapes import SHAPES
from benchmarks.peers import trainer_peer as peer
from benchmarks.random_llama import place_alone, random_set, random_weights, settings
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.io.progress import say
from ift_scale.train.data import packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine.zero_config import optimizer_name

WARM_UP = 2


def rows_of(tokens: TokenizedSet, batch: int) -> list[dict[str, Any]]:
    """The set's examples in the order of its steps, inside a step by length."""
    rows = []
    for number, step in enumerate(packing.step_examples(len(tokens.lengths), batch, 1, 0)):
        for example in sorted(step, key=lambda i: int(tokens.lengths[i])):
            span = slice(tokens.offsets[example], tokens.offsets[example + 1])
            ids, supervised = tokens.ids[span].tolist(), tokens.supervised[span].tolist()
            labels = [i if s else -100 for i, s in zip(ids, supervised, strict=True)]
            rows.append({"step": number, "input_ids": ids, "labels": labels})
    return rows


def what_ran(trainer: Any) -> dict[str, str]:
    """Whose layers, loss and optimizer the trainer used, read off the objects after training."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    modules = list(model.modules())
    liger = {type(module).__name__ for module in modules if _home(module.forward) == "liger_kernel"}
    rotary = sys.modules[type(model).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
    liger |= {"rotary"} if _home(rotary) == "liger_kernel" else set()
    return {
        "layers": f"Liger-Kernel {version('liger-kernel')} ({', '.join(sorted(liger))})"
        if liger
        else "PyTorch",
        "loss": {"trl": "TRL", "liger_kernel": "Liger-Kernel"}.get(
            _home(model.forward), "transformers"
        ),
        "optimizer": optimizer_name(trainer.model_wrapped.optimizer),
        "attention": model.config._attn_implementation,
    }


def _home(function: Any) -> str:
    """The package whose code a function or bound method is; `functools.wraps` changes `__module__`, and not the globals."""
    return str(getattr(function, "__func__", function).__globals__["__name__"]).partition(".")[0]


def who(ran: dict[str, str]) -> str:
    """`TRL 1.16.0, layers by Liger-Kernel, loss by TRL`."""
    layers = "Liger-Kernel" if ran["layers"].startswith("Liger") else ran["layers"]
    return f"TRL {version('trl')}, layers by {layers}, loss by {ran['loss']}"


@click.command()
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), default="1b", show_default=True)
@click.option(
    "--steps",
    default=6,
    show_default=True,
    help="Measured optimizer steps, after two for warming up.",
)
@click.option("--batch", default=128, show_default=True, help="Examples of a step.")
@click.option("--micro-batch", default=32, show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny sizes, nothing stored.")
def main(name: str, steps: int, batch: int, micro_batch: int, tiny: bool) -> None:
    """Measure, and store the rows of `train` on this device."""
    place_alone()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not tiny:
        raise click.UsageError("there is no GPU; --tiny shows on any machine that it runs")
    if tiny:
        name, steps, batch, micro_batch = "tiny", 1, 8, 4
    if not on_gpu:
        peer.ready(1)
    shape = SHAPES[name]
    rows = rows_of(random_set(batch * (steps + WARM_UP), shape["vocab_size"]), batch)
    flash = on_gpu and is_flash_attn_2_available()
    attention = "flash_attention_2" if flash else "sdpa"
    kept = {"dtype": "bfloat16", "batch": batch, "micro_batch": micro_batch, "padding_free": flash}
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(
            Path(folder), shape, torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16, 0.02
        )
        rate = settings("bfloat16", batch, 8192).learning_rate
        common = peer.arguments(
            Path(folder) / "out", peer.zero_2("bfloat16", "torch"), kept, steps + WARM_UP, rate
        )
        args = SFTConfig(
            **common | {"optim": "adamw_torch_fused"},
            max_length=None,
            padding_free=flash,
            use_liger_kernel=on_gpu,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        model = LlamaForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.bfloat16,
            attn_implementation=attention,
        )
        clock = peer.Clock(steps + WARM_UP)
        words = {"<s>": 0, "</s>": 1, "<pad>": 2}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
            eos_token="</s>",
            pad_token="<pad>",
        )
        data = Dataset.from_list(
            [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    ran = what_ran(trainer)
    counts = peer.of_steps(rows)[WARM_UP:]
    speeds = [
        count["tokens"] / seconds
        for count, seconds in zip(counts, clock.seconds[WARM_UP:], strict=True)
    ]
    say(f"{name}: {who(ran)}: {speeds} tokens per second, losses {clock.losses}; {ran}")
    if not all(loss == loss and loss < clock.losses[0] * 1.5 for loss in clock.losses):
        raise SystemExit("TRL's losses do not stay near the first: nothing is stored")
    if on_gpu and not tiny:
        sheet = Sheet("train", False, torch.cuda.get_device_name())
        gate = Gate(checked="losses are finite and stay near the first; the tokens are ours")
        told = {
            "precision": "bfloat16",
            "zero_stage": 2,
            "activation_checkpointing": "none",
            "compile": False,
        }
        about = {
            "shape": name,
            "settings": told,
            "kernels": ran["layers"],
            **ran,
            "own_settings": kept,
            "losses": clock.losses,
        }
        case, program = f"{name} bfloat16", who(ran)
        sheet.add(case, "tokens per second", "1/s", speeds, gate, program, "higher", about=about)
        sheet.add(
            case, "seconds per step", "s", clock.seconds[WARM_UP:], gate, program, about=about
        )
        sheet.add(
            case,
            "peak memory",
            "B",
            [torch.cuda.max_memory_allocated()],
            gate,
            program,
            about=about,
        )
        say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
