"""On the CPU backend every request of a model with video pruning on ends in an error.

GPUModelRunner.load_model sets is_multimodal_pruning_enabled at its end; CPUModelRunner overrides
load_model and does not. The model then appends position channels that nobody takes off again.
"""

from tiny import RATE, arguments, checkpoint, engine, sampling, verdict, video_request

given = arguments(__doc__)

if __name__ == "__main__":
    llm = engine(checkpoint(given.work), rate=RATE, plan=given.plan)
    try:
        (out,) = llm.generate([video_request(1, "what happens?")], sampling(2), use_tqdm=False)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        verdict(True, f"the request ended with {type(error).__name__}: {text}")
    verdict(False, f"a prompt of {len(out.prompt_token_ids)} tokens was answered")
