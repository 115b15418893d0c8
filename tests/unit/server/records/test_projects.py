"""What may be the name of a project."""

import pytest

from tinkex.errors import UnprocessableEntityError
from tinkex.server.records.projects import check_project


@pytest.mark.parametrize("name", ["p", "default", "x" * 200, "Gedichte über Füchse", "a/b:c"])
def test_a_printable_name_is_a_project(name):
    check_project(name)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x00", "a\u202eb"])
def test_other_names_are_refused_by_the_field_they_came_in(name):
    with pytest.raises(UnprocessableEntityError, match="where_to"):
        check_project(name, "where_to")
