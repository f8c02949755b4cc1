"""List the skipped tests of a JUnit file with their reasons; fail where there are more than allowed.

python .ci/skips.py TESTS.xml MOST
"""

import sys
from collections import Counter
from xml.etree import ElementTree

path, most = sys.argv[1:]
reasons = Counter(skip.get("message", "no reason") for skip in ElementTree.parse(path).iter("skipped"))
for reason, number in reasons.most_common():
    print(f"{number:5d}  {reason}")
if reasons.total() > int(most):
    sys.exit(f"{reasons.total()} tests were skipped, at most {most} may be")
print(f"{reasons.total()} skipped, at most {most} may be")
