"""Explanations of latents by a language model, and how well they predict where the latents fire.

    gather.py     the windows of a run's latents            (torch)
    sampling.py   which latents, and which of their windows
    prompts.py    what is asked            answers.py   what is read out of an answer
    client.py     sends requests to a server that speaks OpenAI's chat protocol
    cache.py      answers on disk          cost.py      requests, tokens, time and money, before anything is sent
    rounds.py     explanations first, then scores           scores.py   balanced accuracy with intervals

The procedure is that of arXiv 2410.13928 with the settings of Group-SAE (arXiv 2410.21508).
"""
