"""Small logs that several tests read."""


def rows(interactions):
    """(user, item, timestamp) of every row."""
    assert interactions.column_names == ["user", "item", "timestamp"]
    return [tuple(row.values()) for row in interactions.to_list()]


TWO_ROWS = [("1", "1193", 978300760), ("2", "661", 978302109)]


ORIGINAL_FORMS = {
    "ratings.dat": ("1::1193::5::978300760\n2::661::3::978302109\n", TWO_ROWS),
    "ratings.csv": ("userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.5,978302109\n", TWO_ROWS),
    "u.data": ("1\t1193\t5\t978300760\n2\t661\t3\t978302109\n", TWO_ROWS),
    "ml.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1193\t5\t978300760\n2\t661\t3\t978302109\n",
        TWO_ROWS,
    ),
    "log.tsv": ("timestamp\titem\tuser\n978300760\t1193\t1\n978302109\t661\t2\n", TWO_ROWS),
    "log.jsonl": (
        '{"user": 1, "item": "1193", "timestamp": 978300760}\n{"user": 2, "item": "661", "timestamp": 978302109}\n',
        TWO_ROWS,
    ),
    "reviews_5.json": (
        '{"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "reviewerName": "J. \\"Mac\\"", "helpful": [0, 0], '
        '"reviewText": "good\\nbook", "overall": 5.0, "unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}\n'
        '{"reviewerID": "A14VAT5EAX3D9S", "asin": "B00002243X", "style": {"Size:": " L"}, "helpful": [1, 2], '
        '"reviewText": "", "overall": 2.0, "unixReviewTime": 1363392000, "reviewTime": "03 16, 2013"}\n',
        [("A2SUAM1J3GNN3B", "0000013714", 1252800000), ("A14VAT5EAX3D9S", "B00002243X", 1363392000)],
    ),
    "All_Beauty.jsonl.gz": (
        '{"rating": 5.0, "title": "x", "images": [], "asin": "B00YQ6X8EO", "parent_asin": "B00YQ6X8E0", '
        '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588687728923, "verified_purchase": true}\n'
        '{"rating": 4.0, "title": "y", "images": [{"a": "b"}], "asin": "B081TJ8YS3", "parent_asin": "B081TJ8YS4", '
        '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588615855070, "verified_purchase": true}\n',
        [
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8E0", 1588687728923),
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B081TJ8YS4", 1588615855070),
        ],
    ),
    "ratings_Books.csv": (
        "AH2L9G3DQHHAJ,0000000116,4.0,1019865600\nA39HTATAQ9V7YF,0205616461,5.0,1369699200\n",
        [("AH2L9G3DQHHAJ", "0000000116", 1019865600), ("A39HTATAQ9V7YF", "0205616461", 1369699200)],
    ),
    "Books.csv": (
        "B000123456,A1B2C3D4E5F6G7,5.0,1369699200\n0001713353,A1REUF3A1YCPHM,4.0,1112140800\n",
        [("A1B2C3D4E5F6G7", "B000123456", 1369699200), ("A1REUF3A1YCPHM", "0001713353", 1112140800)],
    ),
    "steam_reviews.json.gz": (
        "{u'username': u'Chaoz', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', "
        'u\'text\': u"it\'s \\"fine\\""}\n'
        "{u'username': u'Ariman1', u'compensation': u'Free', u'product_id': u'328100', u'date': u'2017-08-02', "
        "u'text': u'\\xe9'}\n",
        [("Chaoz", "725280", 1513468800), ("Ariman1", "328100", 1501632000)],
    ),
    "pairs.txt": ("1 10\n1 11\n2 10\n", [("1", "10", 0), ("1", "11", 1), ("2", "10", 2)]),
    "sequences.txt": (
        "1 10 11 12 10\n2 11\n3 12 13\n",
        [
            ("1", "10", 0),
            ("1", "11", 1),
            ("1", "12", 2),
            ("1", "10", 3),
            ("2", "11", 4),
            ("3", "12", 5),
            ("3", "13", 6),
        ],
    ),
}


TABLE = {"user": ["u", "v"], "item": ["a", "b"], "timestamp": [20, 10]}


TABLE_ROWS = [("u", "a", 20), ("v", "b", 10)]
