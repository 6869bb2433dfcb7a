"""A clip in the browser: upload or record it, say what is said in it, and see the intent, why, and what it depends on.

python web_demo.py --checkpoint runs/demo/itsl/best
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagebind_llm.config import SENSES
from imagebind_llm.explain.coloured_claims import STYLE as JUDGED
from imagebind_llm.explain.coloured_claims import coloured
from imagebind_llm.flags import exit_code, parse
from imagebind_llm.web import view
from imagebind_llm.web.analysis import MAX_CHARACTERS, MB, PageError, PageModel, Seen, WebSettings

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is reported to anyone
try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise SystemExit("web_demo.py: gradio is missing; install it with: pip install -e .[demo]") from error

KEPT_S = 600  # how long answers wait for a visitor, and uploads for the question that never came
WAITING = 16  # visitors in the queue
UNEXPECTED = "Something went wrong here, not with your clip; the server's log has the details. Try once more or another clip."
WELCOME = view.html_block(
    view.boxed("Give a clip and its words, or take an example; then switch modalities off to see what changes.")
)
CSS = f"{view.STYLE}\n{JUDGED}" + "\nfooter { display: none !important } #clip video { max-height: 20rem; object-fit: contain }"


def main() -> int:
    settings = parse(WebSettings, description=__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder of uploads is removed then, too
    return exit_code("web_demo.py", lambda: run(settings), out_of_memory="free the GPU's memory, or pass --device cpu")


def run(settings: WebSettings) -> None:
    """Load the model and serve the page until it is interrupted."""
    model = PageModel.load(settings)
    with tempfile.TemporaryDirectory(prefix="itsl_page_") as uploads:
        page, address = serve(model, settings, Path(uploads))
        checked = "claims are checked by a judge" if model.check else "no judge checks claims (--judge FOLDER)"
        print(f"web_demo.py: {address} (Ctrl-C ends it); {len(model.examples)} examples of {settings.data_path}; {checked}")
        page.block_thread()


def serve(model: PageModel, settings: WebSettings, uploads: Path) -> tuple[gr.Blocks, str]:
    """Start the page on a thread of its own; returns it and its address. Files of visitors go to `uploads` alone."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    page = build_page(model, uploads)
    page.queue(max_size=WAITING, api_open=False)
    _, address, _ = page.launch(
        server_name=settings.host,
        server_port=settings.port or None,
        max_file_size=int(settings.max_mb * MB),
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        share=False,
        show_error=False,  # other messages than ours may name files of the server
        allowed_paths=[],
        state_session_capacity=64,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return page, address


def build_page(model: PageModel, uploads: Path) -> gr.Blocks:
    """The page: what is given on the left, the answer on the right, what it was made from below."""
    size = f"{model.settings.max_seconds:g} s and {model.settings.max_mb:g} MB"
    with gr.Blocks(title="ITSL", analytics_enabled=False, delete_cache=(60, KEPT_S)) as page:
        gr.Markdown(
            "# What does this person mean, and why?\nITSL names the intent behind a clip from words, voice and picture."
        )
        seen = gr.State(None, time_to_live=KEPT_S)
        with gr.Row():
            with gr.Column():
                sources: list = ["upload", "webcam"]
                options = gr.WebcamOptions(mirror=False)  # what is recorded is what the model sees
                files = model.takes_files
                video = gr.Video(label="Clip", sources=sources, webcam_options=options, visible=files, elem_id="clip")
                gr.Markdown(f"At most {size}; removed from the server once it is read.", visible=files)
                text = gr.Textbox(label="What is said in it", max_length=MAX_CHARACTERS, lines=2, max_lines=4)
                choices = [(f"{name}: {SENSES[name]}", name) for name in model.modalities]
                modalities = gr.CheckboxGroup(choices, value=list(model.modalities), label="The model may use")
                button = gr.Button("Explain", variant="primary")
                if model.examples:
                    samples = [[example.text] for example in model.examples]
                    examples = gr.Dataset(
                        components=[gr.Textbox(visible=False)], samples=samples, type="index", label="Examples"
                    )
            with gr.Column():
                note = gr.HTML(WELCOME)
                intent = gr.Label(label="Intent", num_top_classes=5)
                answer = gr.HTML()
        comparison = gr.HTML()
        evidence = gr.HTML()

        handlers = Handlers(model, uploads)
        outputs = [note, intent, answer, comparison, seen]
        # one visitor at a time at the model: two would only wait for the same processor
        asked: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        given = [video, text, modalities, seen]
        explain: dict[str, Any] = {"fn": handlers.explain, "inputs": given, "outputs": [*outputs, evidence], **asked}
        running = [button.click(**explain, api_name="explain"), text.submit(**explain, api_visibility="private")]
        again: dict[str, Any] = {"fn": handlers.again, "inputs": [modalities, seen], "outputs": outputs, **asked}
        running.append(modalities.input(**again, trigger_mode="always_last", api_name="again"))
        if model.examples:
            chosen = examples.click(handlers.example, examples, [video, text], api_name="example")
            running.append(chosen.then(**explain, api_visibility="private"))
        for change in (video.upload, video.clear, video.stop_recording):
            forgotten: dict[str, Any] = {"outputs": [*outputs, evidence], "cancels": running}
            change(handlers.forget, **forgotten, api_visibility="private", queue=False)
    return page


class Handlers:
    """What the page does at an event; each yields or returns values of the components that it is bound to."""

    def __init__(self, model: PageModel, uploads: Path):
        self.model, self.uploads = model, uploads

    def explain(self, video: str | None, text: str, modalities: list[str], seen: Seen | None) -> Iterator[tuple]:
        """The answer, then what changes without each modality; of a clip that is new, what the towers were given."""
        clip, evidence = Path(video) if video else None, ""
        try:
            before, seen = seen, None  # of a clip that is refused nothing is kept, and nothing of the one before it
            seen, inputs = self.model.look(clip, before)
            evidence = gr.skip() if inputs is None else view.inputs_block(inputs)
            seen = self.model.read(seen, text)
        except Exception as error:
            yield *refusal(error), seen, evidence
            return
        finally:
            if clip is not None:
                remove(clip, self.uploads)
        for outputs in self.again(modalities, seen):
            yield *outputs, evidence

    def again(self, modalities: list[str], seen: Seen | None) -> Iterator[tuple]:
        """The same from what is kept of the clip; nothing where nothing is."""
        if seen is None:
            yield (gr.skip(),) * 5
            return
        model = self.model
        labels = model.explainer.taxonomy.labels
        try:
            found, chosen = model.answer(seen, modalities), model.chosen(seen, modalities)
            bars = dict(zip(labels, found.probabilities.tolist(), strict=True))
            said = (view.notes_of(seen), bars, view.answer_block(seen, chosen, model))
            yield *said, view.html_block(view.boxed("Looking at what each modality adds …")), seen
            others = model.without(seen, modalities)
            changes = view.changes_block(seen, chosen, others, labels, lambda why: coloured(why, model.claims(seen, why)))
            yield *said, changes, seen
        except Exception as error:
            yield *refusal(error), seen

    def forget(self) -> tuple:
        """Another clip is coming: nothing of the last one stays."""
        return WELCOME, None, "", "", None, ""

    def example(self, index: int) -> tuple[str, str]:
        """A copy of the example among the uploads, which is removed as any upload is, and its words."""
        example = self.model.examples[index]
        assert example.clip is not None  # find_examples takes no other
        return shutil.copy(example.clip, tempfile.mkdtemp(dir=self.uploads)), example.text


def remove(clip: Path, uploads: Path) -> None:
    """Delete an upload and the folder that gradio made for it; nothing that lies elsewhere."""
    if uploads not in clip.parents:
        return
    clip.unlink(missing_ok=True)
    if clip.parent != uploads and clip.parent.is_dir() and not any(clip.parent.iterdir()):
        clip.parent.rmdir()


def refusal(error: Exception) -> tuple:
    """Why there is no answer, in place of one. What nobody foresaw is logged here and not told there."""
    if not isinstance(error, PageError):
        logging.exception("web_demo.py: not foreseen")
    sentence = str(error) if isinstance(error, PageError) else UNEXPECTED
    return view.html_block(view.boxed(sentence, "refused")), None, "", ""


if __name__ == "__main__":
    sys.exit(main())
