"""A package, because pytest tells test files of one name apart only by their packages."""
