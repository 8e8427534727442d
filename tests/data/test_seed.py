"""Seeding: what is loaded, that it can be repeated, killed and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from app.data.source import SourceError, read_source
from tests.medpix_files import write_dataset

Document = dict[str, Any]
