"""One runnable file for each experiment. A recipe of several files has a folder.

A variant starts from the config that it varies, and states only the difference:

    from config.babyllama.student import *

    out_dir = "out/babyllama/58m_fixed"
    kl_norm = "token"

`--help` behind a config prints every knob with the value that it ends up with.
"""
