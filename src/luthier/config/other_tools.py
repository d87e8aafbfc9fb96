"""What other tools call our keys: their names are answered with ours, never accepted silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    # transformers, trl, peft
    "model_name_or_path": "model.path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "dataset_name": "data.train",
    "max_seq_length": "data.max_length",
    "eval_strategy": "training.eval_steps",
    "evaluation_strategy": "training.eval_steps",
    "save_strategy": "training.save_steps",
    "gradient_checkpointing": "training.activation_checkpointing",
    "warmup_ratio": "training.warmup_steps (a share below 1)",
    "load_best_model_at_end": "training.load_best_checkpoint",
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "scheduler": "training.lr_scheduler_type",
    "lora_r": "tuning.r",
    "load_in_4bit": "model.quantization: nf4",
    "load_in_8bit": "model.quantization: int8",
    "bnb_4bit_quant_type": "model.quantization: nf4 (or fp4)",
    "bnb_4bit_use_double_quant": "model.quantization: {kind: nf4, double_quant: true}",
    "bnb_4bit_compute_dtype": "model.quantization: {kind: nf4, compute_dtype: bfloat16}",
    "lora_target_modules": "tuning.target_modules",
    # LLaMA-Factory
    "quantization_bit": "model.quantization: nf4 (there: 4) or int8 (there: 8)",
    "double_quantization": "model.quantization: {kind: nf4, double_quant: true}",
    "template": "data.chat_template (`luthier template list` shows the names; other tools' versions are NAME@TOOL)",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "val_size": "data.eval",
    "dataset_dir": "data.registry (the folder of dataset_info.json)",
    "add_special_tokens": "data.add_tokens",
    "resize_vocab": "data.add_tokens",
    "default_system": "data.system",
    "eval_dataset": "data.eval",
    "preprocessing_num_workers": "data.num_workers",
    "mix_strategy": "data.mixing",
    "interleave_probs": "weight, of each file in data.train",
    "finetuning_type": "tuning",
    "stage": "objective",
    "neftune_alpha": "training.neftune_noise_alpha",
    "noisy_embedding_alpha": "training.neftune_noise_alpha",
    "lora_rank": "tuning.r",
    "lora_target": "tuning.target_modules",
    "adapter_name_or_path": "tuning.adapter_path",
    "additional_target": "tuning.modules_to_save",
    "loraplus_lr_lambda": "tuning.loraplus_lr_ratio",
    "pissa_init": "tuning.init_lora_weights: pissa",
    "pissa_iter": "tuning.init_lora_weights: pissa_niter_N",
    "create_new_adapter": "luthier export RUN --to merged, and a run on that model",
    "freeze_trainable_layers": "tuning: {kind: freeze, last_layers: N} (there: N; for -N first_layers: N)",
    "num_layer_trainable": "tuning: {kind: freeze, last_layers: N} (there: N; for -N first_layers: N)",
    "freeze_trainable_modules": "tuning: {kind: freeze, patterns: [.*NAME.*]}",
    "name_module_trainable": "tuning: {kind: freeze, patterns: [.*NAME.*]}",
    "freeze_extra_modules": "tuning: {kind: freeze, patterns: [.*NAME.*]}",
    # Axolotl
    "unfrozen_parameters": "tuning: {kind: freeze, patterns: [...]}",
    "base_model": "model",
    "datasets": "data.train",
    "sequence_len": "data.max_length",
    "val_set_size": "data.eval",
    "adapter": "tuning",
    "tokens": "data.add_tokens",
    "lora_model_dir": "tuning.adapter_path",
    "lora_modules_to_save": "tuning.modules_to_save",
    "lora_target_linear": "tuning.target_modules: all-linear",
    "peft_use_dora": "tuning.use_dora",
    "peft_use_rslora": "tuning.use_rslora",
    "peft_layers_to_transform": "tuning.layers_to_transform",
    "peft_init_lora_weights": "tuning.init_lora_weights",
    "num_epochs": "training.num_train_epochs",
    "lr_scheduler": "training.lr_scheduler_type",
    "optimizer": "training.optim",
    "saves_per_epoch": "training.save_steps",
    "evals_per_epoch": "training.eval_steps",
    "special_tokens": "the tokenizer's own special tokens",
    "optim_args": "training.optim: {kind: ..., and the keys of that kind}",
    "loraplus_lr_embedding": "training.learning_rate, which embeddings share",
    # torchtune, LitGPT, Unsloth
    "checkpoint_dir": "model.path",
    "batch_size": "training.global_batch_size",
    "micro_batch_size": "training.global_batch_size",
    "rank": "tuning.r",
    "alpha": "tuning.lora_alpha",
}
"""Another tool's key: ours."""

RENAMED_VALUES = {
    "training.optim.kind": {
        # transformers, whose names LLaMA-Factory, Axolotl, Unsloth and QLoRA share; torch's and bitsandbytes' classes
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_apex_fused": "adamw",
        "adamw_hf": "adamw",
        "AdamW": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "adamw_torch_8bit": "adamw_8bit",
        "AdamW8bit": "adamw_8bit",
        "paged_adamw_32bit": "paged_adamw",
        "PagedAdamW": "paged_adamw",
        "PagedAdamW32bit": "paged_adamw",
        "PagedAdamW8bit": "paged_adamw_8bit",
        "lion_32bit": "lion",
    },
    "tuning.kind": {"qlora": "lora, with model.quantization: nf4"},
    "model.quantization.kind": {"4bit": "nf4", "int4": "nf4", "8bit": "int8"},
}
"""Another tool's value of a key of ours: our value."""

BATCH_PARTS = ("per_device_train_batch_size", "micro_batch_size", "batch_size_training", "gradient_accumulation_steps")

NOT_NEEDED = {
    "packing": "samples always lie one after the other without padding, kept apart exactly; leave it out",
    "sample_packing": "samples always lie one after the other without padding, kept apart exactly; leave it out",
    "neat_packing": "samples always lie one after the other without padding, kept apart exactly; leave it out",
    "sft_packing": "samples always lie one after the other without padding, kept apart exactly; leave it out",
    "flash_attn": "the fastest attention that is proven exact for the model is taken; leave it out",
    "flash_attention": "the fastest attention that is proven exact for the model is taken; leave it out",
    "attn_implementation": "the fastest attention that is proven exact for the model is taken; leave it out",
    "deepspeed": "torchrun -m luthier train mine.yaml spreads each batch over processes (distributed: ddp); leave it out",
    "do_train": "luthier train trains; leave it out",
    "bf16": "write model: {path: ..., dtype: bfloat16}, or leave it out: dtype auto",
    "fp16": "write model: {path: ..., dtype: float16}; trained weights stay float32",
    "overwrite_output_dir": "a run's folder is never overwritten; choose another output_dir, or pass --resume",
    "resume_from_checkpoint": "luthier train mine.yaml --resume",
    "trust_remote_code": "a flag of the command line only: luthier train mine.yaml --trust-remote-code",
    "dataloader_num_workers": "batches are laid out ahead of the run; leave it out",
    "per_device_eval_batch_size": "evaluation uses max_tokens_per_micro_batch; leave it out",
}


def foreign_key(key: str, tree: Mapping[str, Any]) -> str | None:
    """What to write instead of another tool's key; None for a key that no tool that we know has."""
    if key in BATCH_PARTS:
        return _global_batch_size(tree)
    if key in NOT_NEEDED:
        return NOT_NEEDED[key]
    return f"write {RENAMED[key]}" if key in RENAMED else None


def _global_batch_size(tree: Mapping[str, Any]) -> str:
    """The product of the parts where they are given: `write global_batch_size: 16`."""
    training = tree.get("training")
    places = [tree, training] if isinstance(training, Mapping) else [tree]
    product, counted = 1, False
    for part in BATCH_PARTS:
        for place in places:
            if isinstance(value := place.get(part), int):
                product, counted = product * value, True
    return f"write global_batch_size: {product}" if counted else "write global_batch_size: the product of all its parts"
