"""The `latentloom` command. Each noun lives in the file of its name and is imported when it is asked for."""
