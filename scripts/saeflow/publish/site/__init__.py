"""The site of a finished study: static pages that open from disk, and data that they load as scripts."""
