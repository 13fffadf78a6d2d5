"""The flag --config: the name or the path of a config, and --config.KEY=VALUE for each of its keys."""

import re
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

flags.disclaim_key_flags()  # a flag belongs to the command that defines it


class _ConfigParser(flags.ArgumentParser):
    def parse(self, argument: str) -> Any:
        from ml_collections import config_dict

        from detzoo.config import FROM_DATA, check_key, load_config
        from detzoo.errors import ConfigError

        try:
            config = load_config(argument)
            for key in keys_set(sys.argv):
                check_key(config, key)
            for key in set(keys_set(sys.argv, '=None')) & set(FROM_DATA):  # which no parser of numbers reads
                config.update_from_flattened_dict({key: config_dict.placeholder(object)})
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:  # which absl would take for a wrong argument
            raise RuntimeError(f'{argument} is a config with an error') from error
        return config.lock()

    def flag_type(self) -> str:
        return 'config'


def keys_set(argv: list[str], value: str = '') -> list[str]:
    """Lists the keys that --config.KEY=VALUE, --config.KEY VALUE, --config.KEY and --noconfig.KEY set.

    Args:
        argv: arguments of the command.
        value: the end of the arguments to list, such as '=None'; all by default.
    """
    found = (re.match(r'--?(?:no)?config\.([\w.]+)', argument) for argument in argv if argument.endswith(value))
    return [match[1] for match in found if match]


def define_config(*, required: bool = True) -> flags.FlagHolder[Any]:
    """Defines the flag --config; its value is a `ConfigDict`."""
    holder = config_flags.DEFINE_config_file(
        'config',
        None,
        'A config: a name (retinanet_shapes) or the path of a file, with a variant after a colon (mask_rcnn_shapes:c4). '
        '--config.KEY=VALUE sets a key of it, for example --config.training.steps=500; detzoo/config.py lists the keys.',
    )
    flags.FLAGS['config'].parser = _ConfigParser()
    if required:
        flags.mark_flag_as_required('config')
    return holder
