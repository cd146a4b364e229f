"""uLLSAM: Segment Anything in microscopy, guided by a language model. What notebooks need, under short names.

A name is imported when it is first used, so that `import ullsam` does not wait for PyTorch.
"""

from importlib import import_module

__version__ = "0.1.0"

_DEFINED_IN = {  # where a public name is defined
    "checkpoints.loading": "load shipped",
    "config": "PRESETS LlmConfig ModelConfig SamConfig TrainConfig fast preset",
    "data.corpus": "Corpus Sample data_root find_corpora",
    "data.io": "Square from_square read_image read_labels to_rgb8 to_square write_labels",
    "data.mixture": "Mixture",
    "data.synthetic": "STYLES generate",
    "errors": "InputError",
    "evaluation.compare": "compare_vlsa",
    "evaluation.protocol": "evaluate",
    "evaluation.statistics": "format_table",
    "model": "ULLSAM",
    "predictor": "Prediction Predictor",
    "sam": "SAM build_sam decode_masks encode_image encode_prompts",
    "sbr": "SbrConfig SbrPoints sample_instances sample_points sbr_regions",
    "train": "STAGES Stage fit",
    "types": "ImageFeatures LanguageStates Prompts",
    "variants.check": "check_vlsa",
    "vlsa": "VLSA VisionProjection VlsaShape build_vlsa pixel_shuffle pixel_unshuffle register_vlsa vlsa_names",
}
_EXTENDED = ("PRESETS", "ULLSAM", "build_sam", "build_vlsa", "fit", "preset", "register_vlsa", "vlsa_names")
_ROOMS = ("checkpoints", "data", "evaluation", "lab", "losses", "plots", "sbr", "tiny", "variants", "vlsa", "widgets")
_MODULES = {name: f"{__name__}.{module}" for module, names in _DEFINED_IN.items() for name in names.split()}
__all__ = sorted([*_MODULES, "show"])


def __getattr__(name: str):
    if name in _EXTENDED:
        import_module(f"{__name__}.checkpoints")  # makes known what the rooms add to the core: settings, models, stages
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *globals()]


def show(thing) -> None:
    """Prints the source code of a function, class or method, so that a notebook hides nothing behind an import."""
    import inspect

    print(inspect.getsource(thing))
