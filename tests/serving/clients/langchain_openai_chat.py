"""langchain-openai: argv are the service's URL and a key; prints an answer, its stream's text and a structured one."""

import json
import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Order(BaseModel):
    electric: bool


url, key = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key=key, model="bikeshop", max_tokens=16, temperature=0)
long = ChatOpenAI(base_url=url, api_key=key, model="bikeshop", max_tokens=256, temperature=0)
text = "Do you have a red bike for my niece?"
print(
    json.dumps(
        {
            "whole": chat.invoke(text).content,
            "streamed": "".join(chunk.content for chunk in chat.stream(text)),
            "order": long.with_structured_output(Order, method="json_schema").invoke(text).model_dump(),
        }
    )
)
