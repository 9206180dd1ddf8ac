"""instructor: argv are the service's URL and a key; prints an object of a class."""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Order(BaseModel):
    electric: bool


url, key = sys.argv[1:]
client = instructor.from_openai(OpenAI(base_url=url, api_key=key), mode=instructor.Mode.JSON_SCHEMA)
order = client.create(
    model="bikeshop",
    messages=[{"role": "user", "content": "Do you have an electric bike for my niece?"}],
    response_model=Order,
    max_tokens=256,
    temperature=0,
    max_retries=0,
)
print(order.model_dump_json())
