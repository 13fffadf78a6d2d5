"""The first training step of a small RetinaNet in torch: what `startup` times beside `detzoo train`. It imports torch alone.

As `configs/retinanet_shapes.py`: a ResNet-18 of a quarter of its width, a pyramid of 48 features, AdamW, 16 images of 128 x 128.
Torchvision's head has four convolutions where that config has one; its images are drawn here, not read.
"""

from torch import nn


def first_step() -> None:
    """Builds the network, trains one step, and prints a line."""
    import torch
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    levels = {'layer2': '0', 'layer3': '1', 'layer4': '2'}
    fpn = BackboneWithFPN(small_resnet(), levels, [32, 64, 128], 48, LastLevelP6P7(48, 48))
    sizes = tuple(tuple(int(2 * stride * 2 ** (k / 3)) for k in range(3)) for stride in (8, 16, 32, 64, 128))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    model = RetinaNet(fpn, 3, min_size=128, max_size=128, anchor_generator=anchors).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    target = {'boxes': torch.tensor([[10.0, 10, 50, 60], [60, 40, 100, 90]]), 'labels': torch.tensor([0, 2])}
    sum(model(list(torch.rand(16, 3, 128, 128)), [target] * 16).values()).backward()
    optimizer.step()
    print('step 1', flush=True)


def small_resnet() -> nn.Module:
    """Builds a ResNet-18 with a quarter of its channels."""
    from torchvision.models.resnet import BasicBlock

    def stage(before: int, features: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(before, features, 1, stride, bias=False), nn.BatchNorm2d(features))
        return nn.Sequential(BasicBlock(before, features, stride, shortcut), BasicBlock(features, features))

    stem = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    features = (16, 16, 32, 64, 128)
    model = nn.Sequential(*stem)
    for number in range(1, 5):
        model.add_module(f'layer{number}', stage(*features[number - 1 : number + 1], 1 if number == 1 else 2))
    return model
