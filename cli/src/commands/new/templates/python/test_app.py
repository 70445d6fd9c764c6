import sys
import types
import unittest

# What the build makes of app.wit.
sys.modules["wit_world"] = types.SimpleNamespace(exports=types.SimpleNamespace(Run=object))

import app


class Answer(unittest.TestCase):
    def test_it_names_the_path(self):
        self.assertEqual(app.answer("/door"), "hello from {{name}} at /door\n")


if __name__ == "__main__":
    unittest.main()
