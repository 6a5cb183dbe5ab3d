from lrfgraph.cli import main

main()
