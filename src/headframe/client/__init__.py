"""The one typed HTTP client, used by the CLI, the tests and anybody's programs.

>>> from headframe import Client
>>> with Client("http://127.0.0.1:7070", key="hf_mem_…") as cloud:        # doctest: +SKIP
...     job = cloud.submit("run: python train.py", workdir=".")
...     for line in cloud.follow(job.workload.id):
...         print(line.text)
"""

from headframe.client.http import ApiError, Client, Unreachable

__all__ = ["ApiError", "Client", "Unreachable"]
