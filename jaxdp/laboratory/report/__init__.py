"""Pages, figures and tables from records: `jaxdp report`."""
