"""A tool with canned answers: what Mistral 7B is told about the weather when nobody is online."""

from typing import Annotated, Literal

from pydantic import Field

CELSIUS = {"Paris": 18.5, "Oslo": 7.0, "Cairo": 31.0}


def get_weather(
    city: Annotated[str, Field(max_length=40)], unit: Literal["celsius", "fahrenheit"] = "celsius"
) -> dict[str, str | float]:
    """Get the current temperature in a city.

    Args:
        city: the name of the city, in English.
        unit: the scale of the answer.
    """
    if city not in CELSIUS:
        raise ValueError(f"no weather for {city}; known are {', '.join(CELSIUS)}")
    degrees = CELSIUS[city]
    return {"city": city, "temperature": degrees if unit == "celsius" else degrees * 9 / 5 + 32, "unit": unit}
