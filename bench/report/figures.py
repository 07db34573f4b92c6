"""How every figure is drawn: the version of Vega-Lite, fonts, axes and colours that follow the text's."""

from typing import Any

import altair as alt

VEGALITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
CONFIG: dict[str, Any] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "tickColor": "#808080",
        "domainColor": "#808080",
        "gridColor": "#808080",
        "gridOpacity": 0.22,
    },
    "axisLeft": {"minExtent": 46},
    "text": {"fontSize": 11, "color": "currentColor"},
    "title": {
        "anchor": "start",
        "fontSize": 12.5,
        "offset": 10,
        "color": "currentColor",
        "subtitleColor": "currentColor",
    },
}
