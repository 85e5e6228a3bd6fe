"""Registration of our classes with the Auto classes and pipelines of transformers.

After `import swinbert`, transformers' `AutoModel`, `AutoProcessor`, `pipeline("video-captioning")` and so on must know
SwinBERT. They take classes, and importing ours takes seconds, because it imports torch. `swinbert --help` should not
have to wait for that. A program that has not imported transformers cannot use its Auto classes, so an import hook
registers our classes at the end of the first import of transformers, before that import returns.

One case is different. Where a model file of ours is the first to import transformers (`import
swinbert.modeling_swinbert`), its classes do not exist yet at that moment: the hook then registers at the end of that
file.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType


class _RegistrationHook(MetaPathFinder):
    """Calls `register` after the first import of transformers; leaves finding and loading to the other finders."""

    def __init__(self) -> None:
        self.registered = False
        self._executing: dict[str, int] = {}  # module -> thread that is executing it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.registered or not (fullname == "transformers" or _is_model_file(fullname)):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _HookedLoader(spec.loader, self)
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        thread = get_ident()
        outermost = thread not in self._executing.values()
        self._executing[module.__name__] = thread
        try:
            loader.exec_module(module)
            if outermost and not self.registered and sys.modules.get("transformers") is not None:
                self._register(thread)
        finally:
            del self._executing[module.__name__]

    def _register(self, thread: int) -> None:
        try:
            register()
        except ImportError:
            # Where two threads wait for each other's imports, Python lets one of them see an incomplete module: the
            # other thread is executing it, and registers afterwards.
            if set(self._executing.values()) == {thread}:
                raise
        except RuntimeError as error:
            # Or it stops one of them: the other thread is about to execute a module of ours, and registers then.
            if type(error).__name__ != "_DeadlockError":
                raise
        else:
            self.registered = True


class _HookedLoader(Loader):
    """Replaces the loader of one module until the module is executed."""

    def __init__(self, loader: Loader, hook: _RegistrationHook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._hook.execute(self._loader, module)


def _is_model_file(module: str) -> bool:
    """Whether this is one of the files that are saved with a model; `register` needs all of them."""
    return module.startswith(f"{__package__}.") and module.endswith("_swinbert")


def register_with_transformers() -> None:
    """Registers our classes now if transformers is imported already, otherwise when it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _RegistrationHook())


class _DefaultModel(dict):
    """What `pipeline` loads if no model is named. Looking it up says, in one message, if it is not to be had."""

    def __getitem__(self, key: str):
        from .captioning.loading import download_size

        download_size()
        return super().__getitem__(key)


def register() -> None:
    """Registers our classes with the Auto classes and pipelines of this process, and for `save_pretrained`."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
        AutoVideoProcessor,
    )

    # While one thread registers, another may be importing `swinbert.processing`, which waits for transformers in its
    # first line. What is imported here takes names from the modules of that package, therefore, not from the package.
    from .captioning import families  # noqa: F401 - adds the families of other models
    from .configuration_swinbert import SwinBertConfig, VideoSwinConfig
    from .modeling_swinbert import SwinBertForVideoCaptioning, SwinBertModel
    from .modeling_video_swin_swinbert import VideoSwinModel
    from .processing.pipeline_swinbert import DEFAULT_MODEL, register_pipeline
    from .processing.processing_swinbert import SwinBertProcessor
    from .processing.video_processing_swinbert import SwinBertVideoProcessor

    AutoConfig.register("video_swin", VideoSwinConfig, exist_ok=True)
    AutoConfig.register("swinbert", SwinBertConfig, exist_ok=True)
    AutoModel.register(VideoSwinConfig, VideoSwinModel, exist_ok=True)
    AutoModel.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
    AutoModelForImageTextToText.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
    AutoModelForMultimodalLM.register(SwinBertConfig, SwinBertForVideoCaptioning, exist_ok=True)
    AutoVideoProcessor.register(SwinBertConfig, SwinBertVideoProcessor, exist_ok=True)
    AutoProcessor.register(SwinBertConfig, SwinBertProcessor, exist_ok=True)
    register_pipeline(_DefaultModel(model=(DEFAULT_MODEL, "main")))

    # `save_pretrained` then copies their source files, which `trust_remote_code` uses where swinbert is not installed.
    SwinBertConfig.register_for_auto_class()
    VideoSwinConfig.register_for_auto_class()
    SwinBertModel.register_for_auto_class("AutoModel")
    VideoSwinModel.register_for_auto_class("AutoModel")
    SwinBertForVideoCaptioning.register_for_auto_class("AutoModelForImageTextToText")
    SwinBertVideoProcessor.register_for_auto_class()
    SwinBertProcessor.register_for_auto_class()
