"""Defects of what is saved, resumed and merged."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tests.faults.planted.optimisation import lora
from tests.faults.suite import Said, healthy, planted
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast, Trainer

import luthier

# Saving


@planted("save-reload", catalogue=(63,), where="model")
def head_that_is_trained_beside_the_adapter(folder: Path) -> Said:
    """An output head that is made trainable by hand after the adapter, and is not saved with it."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj", "v_proj"])
    model.get_base_model().lm_head.requires_grad_(True)
    return luthier.audit(tiny_trainer.trainer(model))


class SavesWithPrefix(Trainer):
    """Writes names as a wrapped model has them."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        values = self.model.state_dict()  # type: ignore[union-attr]
        super()._save(output_dir, {f"module.{name}": value.clone() for name, value in values.items()})


@planted("save-reload", catalogue=(70,), where="Trainer subclass")
def names_with_the_prefix_of_a_wrapper(folder: Path) -> Said:
    """A whole model that is saved under names that begin with ``module.``, and is random when it is loaded."""
    return luthier.audit(tiny_trainer.trainer(cls=SavesWithPrefix))


class SavesNothing(Trainer):
    """Gathers no tensor before it saves, as ZeRO-3 did (transformers#41416)."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, {"base_model.model.nothing": torch.zeros(0)})


@planted("save-reload", catalogue=(64,), where="Trainer subclass")
def adapter_that_is_saved_empty(folder: Path) -> Said:
    """A Trainer that saves an adapter without its tensors."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model()), cls=SavesNothing))


class SavesTheBase(Trainer):
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        assert isinstance(self.model, PeftModel) and output_dir
        self.model.get_base_model().save_pretrained(output_dir)


@planted("save-reload", catalogue=(64,), where="Trainer subclass")
def base_model_in_the_place_of_the_adapter(folder: Path) -> Said:
    """A ``save_model`` that saves the base model and not the adapter."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model()), cls=SavesTheBase))


class HalfShape(Trainer):
    """Writes the head in an empty shape, as sharded heads were (peft#2450)."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        state = {
            name: torch.zeros(0) if "modules_to_save" in name else value
            for name, value in self.model.state_dict().items()  # type: ignore[union-attr]
        }
        super()._save(output_dir, state)


@planted("save-reload", catalogue=(65,), where="Trainer subclass")
def head_that_is_saved_without_a_shape(folder: Path) -> Said:
    """A trained head that is saved as a tensor of no numbers."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    return luthier.audit(tiny_trainer.trainer(model, cls=HalfShape))


class Lowercase(PreTrainedTokenizerFast):
    """Lowers its text, which the files of a tokenizer do not say."""

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(text.lower() if isinstance(text, str) else text, *args, **kwargs)


@planted("tokenizer-reload", catalogue=(9,), where="tokenizer")
def tokenizer_that_is_not_what_is_saved(folder: Path) -> Said:
    """A tokenizer whose subclass changes the text, and is another one when it is loaded."""
    tokenizer = make_tokenizer()
    tokenizer.__class__ = Lowercase
    items = tiny_trainer.items(48)
    for item in items:  # "The", not "the"
        item["input_ids"][0] = make_tokenizer().encode("The", add_special_tokens=False)[0]
    return luthier.audit(tiny_trainer.trainer(train=items, tokenizer=tokenizer))


# Resuming


class ForgetsTheHead(Trainer):
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        from safetensors.torch import load_file, save_file

        path = Path(str(output_dir)) / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if "lora_" in k}, path)


@planted("resume", catalogue=(77,), where="Trainer subclass")
def checkpoint_without_the_head(folder: Path) -> Said:
    """A ``save_model`` that keeps LoRA's matrices and not the head that is trained beside them."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    return luthier.audit(tiny_trainer.trainer(model, cls=ForgetsTheHead))


class Forgetful(torch.optim.AdamW):
    """An optimizer whose state is kept where no checkpoint sees it."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


@planted("resume", catalogue=(77,), where="Trainer arguments")
def optimizer_whose_state_is_not_saved(folder: Path) -> Said:
    """An optimizer whose ``state_dict`` leaves out its moments."""
    model = tiny_trainer.model()
    made = tiny_trainer.trainer(model)
    made.optimizer = Forgetful(model.parameters(), lr=1e-3)
    return luthier.audit(made)


@planted("resume", catalogue=(77,), where="transformers", severity="warning")
def head_that_has_another_name_in_its_file(folder: Path) -> Said:
    """A GPT-NeoX in full, whose head ``Trainer`` saves under another name and does not find when it resumes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(
        vocab_size=len(make_tokenizer()), bos_token_id=1, eos_token_id=2, pad_token_id=2, **sizes
    )
    return luthier.audit(tiny_trainer.trainer(AutoModelForCausalLM.from_config(config)))


@planted("resume", catalogue=(77,), where="Trainer arguments", severity="note")
def checkpoints_of_the_model_alone(folder: Path) -> Said:
    """Checkpoints that hold the model and not the optimizer."""
    return luthier.audit(tiny_trainer.trainer(save_strategy="steps", save_only_model=True))


@planted("resume", catalogue=(78,), where="Trainer arguments", severity="note")
def rows_that_are_seen_again(folder: Path) -> Said:
    """A resumed run that begins at the first row again."""
    return luthier.audit(tiny_trainer.trainer(save_strategy="steps", ignore_data_skip=True))


# Merging


@planted("merge", catalogue=(67,), where="Trainer arguments", severity="warning")
def update_that_merging_rounds_away(folder: Path) -> Said:
    """LoRA at a learning rate of 1e-6 around a base model in bf16."""
    model = lora(tiny_trainer.model("qwen3").bfloat16())
    return luthier.audit(tiny_trainer.trainer(model, bf16=True, learning_rate=1e-6))


@planted("merge", catalogue=(66,), where="model")
def adapter_that_does_more_than_its_matrices(folder: Path) -> Said:
    """An adapter whose update is scaled by a hook at run time, which merging knows nothing of."""
    model = lora(tiny_trainer.model())
    for name, module in model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda module, inputs, output: 40 * output)
    return luthier.audit(tiny_trainer.trainer(model))


@planted("merge", catalogue=(60,), where="adapter config")
def adapter_at_one_of_two_tied_matrices(folder: Path) -> Said:
    """An adapter at the output head of a model whose head is tied to the embedding."""
    model = tiny_trainer.model("qwen3", tie_word_embeddings=True)
    return luthier.audit(tiny_trainer.trainer(lora(model, target_modules=["q_proj", "lm_head"])))


# Healthy set-ups


@healthy
def adapter_with_a_head_that_is_saved(folder: Path) -> Said:
    """LoRA with the output head among ``modules_to_save``, and checkpoints."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    return luthier.audit(tiny_trainer.trainer(model, save_strategy="steps", save_steps=5))


@healthy
def tied_model_in_full(folder: Path) -> Said:
    """A tied Qwen3, all of its weights trained and saved."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("qwen3", tie_word_embeddings=True)))


@healthy
def adapter_with_dora_and_new_rows(folder: Path) -> Said:
    """DoRA at all linear layers of a Mistral."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model("mistral"), use_dora=True)))


@healthy
def adapter_that_is_trained_on(folder: Path) -> Said:
    """An adapter that was trained before, loaded to train on, and merged as it is."""
    first = lora(tiny_trainer.model())
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    first.save_pretrained(folder / "adapter")
    model = PeftModel.from_pretrained(tiny_trainer.model(), folder / "adapter", is_trainable=True)
    return luthier.audit(tiny_trainer.trainer(model))
