"""Map the packages at the repository's root to javisc.*: folder `x` is imported as `javisc.x`, `command` as `javisc` itself."""

from setuptools import find_packages, setup

FLOORS = ("manifests", "compiler", "kernels", "trainer")

packages = ["javisc", *(f"javisc.{name}" for name in find_packages("command"))]
package_dir = {"javisc": "command"}
for floor in FLOORS:
    packages += [f"javisc.{floor}", *(f"javisc.{floor}.{name}" for name in find_packages(floor))]
    package_dir[f"javisc.{floor}"] = floor

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={name: ["py.typed", "*.yaml", "*.html", "*.css", "*.js", "*.json", "*.txt"] for name in packages},
)
