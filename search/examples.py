"""Example queries, labels and templates for the page, in several scripts and both directions."""

from __future__ import annotations

from typing import NamedTuple

QUERIES = (
    "Two dogs in the snow",
    "két kutya a hóban",
    "雪の中の二匹の犬",
    "كلبان في الثلج",
    "یک گربه روی میز",
    "Μια γάτα πάνω σε ένα τραπέζι",
    "кошка на столе",
    "मेज़ पर एक बिल्ली",
    "밤의 런던",
    "ลอนดอนตอนกลางคืน",
)


class LabelExample(NamedTuple):
    """Labels, and a template that puts them into a sentence of their language."""

    labels: tuple[str, ...]
    template: str


LABELS = (
    LabelExample(("two dogs in the snow", "a cat on a table", "London at night"), "a picture of {}"),
    LabelExample(("كلبان في الثلج", "قطة على طاولة", "لندن ليلًا"), "صورة: {}"),
    LabelExample(("دو سگ در برف", "یک گربه روی میز", "لندن در شب"), "تصویری از {}"),
    LabelExample(("雪の中の二匹の犬", "テーブルの上の猫", "夜のロンドン"), "{}の写真"),
    LabelExample(("две собаки в снегу", "кошка на столе", "ночной Лондон"), "изображение: {}"),
)
