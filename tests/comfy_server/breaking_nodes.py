"""Two nodes for the tests' ComfyUI, which takes this file as a node pack: models that fail in the middle of a block."""

FAILURE = "stopped by a test"
BLOCK = 3
MARK = "latentloom_test_fails_at"


class FailingModel:
    """A clone of a MODEL that raises an error in its fourth block from a noise level on."""

    CATEGORY = "tests"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "step": ("INT", {"default": 4})}})

    def run(self, model, step):
        clone = model.clone()

        def fail(given, extra):
            options = given.get("transformer_options") or extra["transformer_options"]
            schedule = options["sample_sigmas"]
            if float(options["sigmas"].flatten()[0]) <= float(schedule[step]):
                raise RuntimeError(FAILURE)
            return extra["original_block"](given)

        clone.set_model_patch_replace(fail, "dit", "double_block", BLOCK)
        return (clone,)


class FailingWanVideoModel:
    """The same of a WANVIDEOMODEL; the hook stays on the shared model and does nothing without the clone's options."""

    CATEGORY = "tests"
    RETURN_TYPES = ("WANVIDEOMODEL",)
    FUNCTION = "run"

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("WANVIDEOMODEL",), "step": ("INT", {"default": 4})}})

    def run(self, model, step):
        clone = model.clone()
        options = {**clone.model_options["transformer_options"], MARK: step}
        clone.model_options = {**clone.model_options, "transformer_options": options}

        def fail(block, args, kwargs):
            at = (kwargs.get("transformer_options") or {}).get(MARK)
            if at is not None and int(kwargs["current_step"]) >= at:
                raise RuntimeError(FAILURE)

        clone.model.diffusion_model.blocks[BLOCK].register_forward_pre_hook(fail, with_kwargs=True)
        return (clone,)


NODE_CLASS_MAPPINGS = {"LatentLoomTestFailingModel": FailingModel, "LatentLoomTestFailingWan": FailingWanVideoModel}
