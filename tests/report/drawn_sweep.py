"""A small sweep with drawn results, and what tests read of its reports: nothing is trained."""

import html.parser
import json
import re

import numpy as np
import pycocotools.mask
from PIL import Image, ImageDraw

from detzoo.evaluation import coco_metrics, write_detections
from detzoo.report.findings import read_findings
from detzoo.report.markdown import to_markdown
from detzoo.report.page import sections
from detzoo.sweeps.store import FAILED, FINISHED, Result, Store

CLASSES = {3: 'cell', 8: 'nucleus', 9: 'debris'}
TRUTH = 'drawn-validation'
IMAGES = range(101, 113)
RESAMPLES = 60
REASON = 'XlaRuntimeError: RESOURCE_EXHAUSTED: <out> of memory | 8 GiB'
# Groups with their runs' noise (share of a box's size, of wrong classes and of missed objects), one for each seed.
NOISE = {'good': (0.03, 0.03), 'bad': (0.2, 0.2), 'middle': (0.1,)}


def draw_truth():
    """A COCO dict of 12 images with 4 to 6 objects each, small to large, and one crowd."""
    rng = np.random.RandomState(0)
    annotations = []
    for image in IMAGES:
        for _ in range(rng.randint(4, 7)):
            width, height = rng.uniform(15, 120, 2)
            box = [
                *(float(x) for x in rng.uniform(0, 260 - np.array([width, height]) / 2)),
                float(width),
                float(height),
            ]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(rng.choice(list(CLASSES))),
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    annotations[0]['iscrowd'] = 1
    images = [dict(id=image, width=320, height=320, file_name=f'{image}.png') for image in IMAGES]
    return dict(
        images=images, categories=[dict(id=i, name=name) for i, name in CLASSES.items()], annotations=annotations
    )


def perturb(truth, noise, seed):
    """Detections: the objects, moved, renamed or left out, and some that are on nothing."""
    rng = np.random.RandomState(seed)
    found = []
    for row in truth['annotations']:
        if rng.rand() > noise:
            x, y, w, h = row['bbox']
            dx, dy, dw, dh = rng.normal(0, noise, 4)
            category = row['category_id'] if rng.rand() > noise else int(rng.choice(list(CLASSES)))
            box = [float(v) for v in (x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh))]
            found.append(
                dict(image_id=row['image_id'], category_id=category, bbox=box, score=float(rng.uniform(0.3, 1)))
            )
        if rng.rand() < noise:
            box = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(20, 60, 2))]
            found.append(dict(image_id=row['image_id'], category_id=3, bbox=box, score=float(rng.uniform(0, 0.6))))
    return found


def config_of(group, seed):
    """Something like a config, with a list and a group of keys."""
    canvases = [[128, 128], [64, 128]] if group == 'middle' else [[128, 128]]
    gamma = {'good': 2.0, 'bad': 0.0, 'middle': 2.0, 'broken': 5.0}[group]
    return dict(
        seed=seed,
        data=dict(
            name='drawn',
            canvases=canvases,
            train_split='train[:400]' if group == 'bad' else 'train[:1600]',
            data_dir=None,
        ),
        model=dict(name='retinanet', focal_gamma=gamma, rpn=dict(samples=64)),
        training=dict(steps=1000),
        optimizer=dict(frozen='</script><b>' if group == 'bad' else ''),
    )


def cost_of(group, batch):
    """A row of costs.json; the better a group, the more it costs."""
    scale = {'good': 4.0, 'bad': 1.0, 'middle': 2.0}.get(group, 3.0) * batch
    shares = {'backbone': 0.005, 'heads': 0.0032, 'neck': -0.0002, 'post': 0.002}
    return dict(
        name=group,
        batch=batch,
        canvas=[64, 128],
        device='cpu (drawn)',
        dtype='float32',
        parameters=1_500_000,
        flops=1e9 * scale,
        peak_bytes=int(2**20 * (50 + 10 * scale)),
        compile_seconds=3.5,
        runs=50,
        p50_seconds=0.010 * scale,
        p90_seconds=0.012 * scale,
        network_p50_seconds=0.008 * scale,
        network_p90_seconds=0.009 * scale,
        post_p50_seconds=0.002 * scale,
        post_p90_seconds=0.003 * scale,
        stages=[
            dict(stage=stage, parameters=500_000, flops=2.5e8 * scale, peak_bytes=2**20 * 50, p50_seconds=share * scale)
            for stage, share in shares.items()
        ],
    )


def draw_panel(path, boxes, caption):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', (480, 480), '#9aa5b1')
    draw = ImageDraw.Draw(image)
    for x, y, w, h in boxes:
        draw.rectangle([1.5 * x, 1.5 * y, 1.5 * (x + abs(w)), 1.5 * (y + abs(h))], outline='#00e5ff', width=3)
    draw.text((8, 8), caption, 'black')
    image.save(path, quality=60)


def make_store(folder):
    """A sweep of `good` and `bad` with two seeds, `middle` with one, and `broken`, which failed."""
    store, truth = Store(folder), draw_truth()
    store.write_ground_truth(TRUTH, truth)
    planned = []
    runs = [(group, seed) for group, noises in NOISE.items() for seed in range(len(noises))] + [('broken', 0)]
    for group, seed in runs:
        planned.append(
            Result(
                run=f'{group}_seed{seed}',
                group=group,
                series='cross_entropy' if group == 'bad' else 'focal',
                status='waiting',
                reason='',
                config=config_of(group, seed),
                changes={},
                seed=seed,
                published={'good': {'AP': 34.0, 'AP50': 52.5}, 'bad': {'AP': 30.2}}.get(group, {}),
            )
        )
    sweep = dict(
        experiment='experiments/drawn.py',
        docstring='Does it help to see well?\n\n    python scripts/sweep.py --experiment=experiments/drawn.py\n\n'
        "The paper's answer: yes. Held fixed: `data` & all.\nVaried: eyes.\n",
        metrics=['AP', 'AP50'],
        figures=[
            dict(x='model.focal_gamma', y='AP', log=False, pareto=False, batch=1),
            dict(x='data.train_split', y='AP', log=True, pareto=False, batch=1),
            dict(x='seconds', y='AP', log=True, pareto=True, batch=1),
        ],
        runs=[run._asdict() for run in planned],
    )
    (store.folder / 'sweep.json').write_text(json.dumps(sweep))
    for index, run in enumerate(planned):
        if run.group == 'broken':
            store.write_result(run._replace(status=FAILED, reason=REASON, seconds=12.0))
            continue
        detections = perturb(truth, NOISE[run.group][run.seed], 100 + index)
        metrics = coco_metrics(truth, detections)
        folder = store.results_of(run.run)
        folder.mkdir(parents=True)
        write_detections(folder / 'detections.json.gz', detections)
        steps = np.arange(10, 1001, 10)
        curves = dict(
            training=dict(step=steps.tolist(), loss=(0.2 + np.exp(-steps / 200)).tolist()),
            validation=dict(step=[500, 1000], AP=[None, metrics['boxes']['AP']], loss=[0.5, 0.4]),
        )
        (folder / 'curves.json').write_text(json.dumps(curves))
        for image in IMAGES[:2]:
            draw_panel(
                folder / 'panels' / f'{image}.jpg',
                [row['bbox'] for row in detections if row['image_id'] == image],
                run.run,
            )
        draw_panel(folder / 'assignment' / 'anchors.jpg', [row['bbox'] for row in truth['annotations'][:5]], 'anchors')
        store.write_result(
            run._replace(
                status=FINISHED,
                versions={'python': '3.11', 'jax': '0.10.2', 'commit': 'abc'},
                device={'kind': 'cpu', 'count': 1},
                steps=1000,
                seconds=300.0 + 60 * index,
                parameters=1_500_000,
                metrics=metrics['boxes'],
                per_class=metrics['per_class'],
                truth=TRUTH,
            )
        )
    (store.folder / 'costs.json').write_text(json.dumps([cost_of(group, batch) for group in NOISE for batch in (1, 8)]))
    for image in IMAGES[:2]:
        boxes = [row['bbox'] for row in truth['annotations'] if row['image_id'] == image]
        draw_panel(store.truth(TRUTH) / 'panels' / f'{image}.jpg', boxes, 'truth')
    return store


class Page(html.parser.HTMLParser):
    """An HTML page: its elements, whether they nest, and its text."""

    VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.script = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f'{tag} has an attribute twice'
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == 'script':
            self.script[self.open[-1][1].get('id')] = data
        elif self.open and self.open[-1][0] != 'style':
            self.texts.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.texts).split())

    def attributes(self, name, tag=None):
        return [of[name] for which, of in self.elements if name in of and tag in (None, which)]


def table_after(markdown, heading, skip=0):
    """The cells of a Markdown table of a section, head first, bold marks removed: {first cell: {head: cell}}."""
    section = markdown.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    tables = re.findall(r'(?:^\|.*\n?)+', section, re.M)
    head, _, *rows = [
        [cell.strip(' *') for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in tables[skip].splitlines()
    ]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def rendered(store):
    """The Markdown of a store as it is now."""
    return to_markdown('title', sections(read_findings(store.folder, 10)), store.folder)


def rewrite_sweep(store, **changes):
    path = store.folder / 'sweep.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def keep_groups(store, *names):
    """Forgets the runs of other groups."""
    runs = [run for run in store.sweep()['runs'] if run['group'] in names]
    rewrite_sweep(store, runs=runs)
    kept = [json.dumps(row._asdict()) for row in store.results() if row.group in names]
    (store.folder / 'results.jsonl').write_text('\n'.join(kept))


def box_mask(box, share):
    """Run lengths of a rectangle in an image of 320 x 320, or of the share of it that lies above."""
    x, y, w, h = (round(value) for value in box)
    mask = np.zeros((320, 320), np.uint8, order='F')
    mask[max(0, y) : max(1, round(y + share * h)), max(0, x) : max(1, x + w)] = 1
    run_lengths = pycocotools.mask.encode(mask)
    return {'size': run_lengths['size'], 'counts': run_lengths['counts'].decode()}
