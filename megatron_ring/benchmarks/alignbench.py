"""AlignBench's dimensions and its total (Liu et al. 2023, arXiv 2311.18743; and the settings of its program)."""

from __future__ import annotations

from collections.abc import Iterable

_FACTS = ("factual correctness", "user satisfaction", "clarity", "completeness")
_REASONING = ("factual correctness", "user satisfaction", "logical coherence", "completeness")
_WRITING = ("factual correctness", "user satisfaction", "logical coherence", "creativity", "richness")
_ADVICE = ("factual correctness", "user satisfaction", "fairness and responsibility", "creativity")

# The names of subcategories are those of the public file.
_DIMENSIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("常识知识", "阅读理解", "文本分类", "信息抽取", "字词理解", "文化理解", "物理", "化学", "计算机",
                     "生物医学", "经济", "天文", "历史", "音乐", "法律", "体育", "地理", "文学", "其他"), _FACTS),
    **dict.fromkeys(("证明", "推理", "初等数学", "高等数学", "应用数学"), _REASONING),
    **dict.fromkeys(("翻译", "实用文体写作", "创意文体写作", "专业文体写作", "其他写作类", "现实生活类", "游戏娱乐类",
                     "功能类", "现实名人类", "（虚拟）恋爱类"), _WRITING),
    **dict.fromkeys(("观点表达", "寻求建议"), _ADVICE),
}  # fmt: skip
GROUPS = {
    "language": ("基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"),
    "reasoning": ("数学计算", "逻辑推理"),
}


def dimensions_of(subcategory: str) -> tuple[str, ...]:
    """What a judge grades beside the whole; empty for a subcategory that is not the file's."""
    return _DIMENSIONS.get(subcategory.strip(), ())


def totals(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """`language` and `reasoning`, the means over the means of their categories, and `total`, the mean of the two: the number
    that AlignBench publishes, where each category weighs the same whatever its size. Empty unless every category is there.

    Args:
        scores: category and score of each response.
    """
    by_category: dict[str, list[float]] = {}
    for category, score in scores:
        by_category.setdefault(category, []).append(score)
    if not all(name in by_category for names in GROUPS.values() for name in names):
        return {}
    means = {name: sum(values) / len(values) for name, values in by_category.items()}
    found = {group: sum(means[name] for name in names) / len(names) for group, names in GROUPS.items()}
    return {**found, "total": sum(found.values()) / len(found)}
